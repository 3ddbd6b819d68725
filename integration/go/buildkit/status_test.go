package conformance

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// sees waits until the progress says what is looked for.
func (w *watch) sees(t *testing.T, match func(*client.SolveStatus) bool) {
	t.Helper()
	seen := make(chan struct{})
	w.mu.Lock()
	if len(w.vertexes)+len(w.statuses) > 0 && match(&client.SolveStatus{Vertexes: w.vertexes, Statuses: w.statuses}) {
		w.mu.Unlock()
		return
	}
	w.seen, w.match = append(w.seen, seen), append(w.match, match)
	w.mu.Unlock()
	select {
	case <-seen:
	case <-time.After(limit):
		t.Fatal("the progress never said it")
	}
}

func TestEveryVertexThatStartedIsCompleted(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("status-")
	r.push(name, "one", newImage(t, 2, "amd64"))
	r.push(name, "two", newImage(t, 1, "amd64"))
	merged := llb.Merge([]llb.State{llb.Image(r.host + "/" + name + ":one"), llb.Image(r.host + "/" + name + ":two")})
	def := marshal(t, merged)

	_, w, err := solve(t, c, def, exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))

	require.NoError(t, err)
	known := map[digest.Digest]bool{}
	for dgst, vertex := range w.last() {
		known[digest.Digest(dgst)] = true
		require.NotEmpty(t, vertex.Name)
		require.Empty(t, vertex.Error, vertex.Name)
		if vertex.Started != nil {
			require.NotNil(t, vertex.Completed, vertex.Name)
			require.False(t, vertex.Completed.Before(*vertex.Started), vertex.Name)
		}
	}
	for _, op := range def.ToPB().Def[:len(def.Def)-1] {
		require.True(t, known[digest.FromBytes(op)], "a vertex of the definition was not reported")
	}
	for _, status := range w.statuses {
		require.True(t, known[status.Vertex], "a status of an unknown vertex")
		require.NotEmpty(t, status.ID)
	}
}

func TestTheBytesOfALayerAreReportedUnderItsImage(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 1, "amd64")
	ref := r.push(unique("bytes-"), "latest", img)
	def := marshal(t, llb.Image(ref))
	vertex := digest.FromBytes(def.ToPB().Def[0])

	_, w, err := solve(t, c, def, exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))

	require.NoError(t, err)
	var last *client.VertexStatus
	for _, status := range w.statuses {
		if status.ID == img.layers[0].Digest.String() {
			require.Equal(t, vertex, status.Vertex)
			last = status
		}
	}
	require.NotNil(t, last, "no bytes of the layer were reported")
	require.Equal(t, img.layers[0].Size, last.Total)
	require.Equal(t, img.layers[0].Size, last.Current)
	require.NotNil(t, last.Completed)
}

func TestASecondBuildIsCached(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("cached-"), "latest", newImage(t, 1, "amd64"))
	def := marshal(t, llb.Image(ref))
	vertex := digest.FromBytes(def.ToPB().Def[0]).String()
	opt := exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard})
	_, _, err := solve(t, c, def, opt)
	require.NoError(t, err)

	_, w, err := solve(t, c, def, opt)

	require.NoError(t, err)
	last := w.last()[vertex]
	require.NotNil(t, last)
	require.True(t, last.Cached)
	require.NotNil(t, last.Started)
	require.NotNil(t, last.Completed)
}

func TestAStepThatIgnoresTheCacheRunsWhateverItsFilesAreFor(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	made := func(script string) llb.State { return base.Run(sh("echo ran; "+script), llb.IgnoreCache).Root() }
	read := func(from llb.State) llb.State {
		copied := llb.Scratch().File(llb.Copy(from, "/made", "/copied"))
		return base.Run(sh("busybox cat /m/copied"), llb.AddMount("/m", copied, llb.Readonly)).Run(sh("echo after")).Root()
	}
	random := made("busybox cat /proc/sys/kernel/random/uuid > /made")
	first, err := run(t, c, read(random), client.SolveOpt{})
	require.NoError(t, err)
	second, err := run(t, c, read(random), client.SolveOpt{})
	require.NoError(t, err)
	require.Contains(t, first, "after\n")
	require.Contains(t, second, "ran\n")
	if os.Getenv("DAEMON") != "buildkitd" {
		// It has steps on what is new from its cache.
		require.Contains(t, second, "after\n")
		require.NotEqual(t, first, second)
		// The newest is what there is.
		third, err := run(t, c, read(base.Run(sh("echo ran; busybox cat /proc/sys/kernel/random/uuid > /made")).Root()), client.SolveOpt{})
		require.NoError(t, err)
		require.Empty(t, third)
	}

	same := made("echo same > /made")
	text, err := run(t, c, read(same), client.SolveOpt{})
	require.NoError(t, err)
	require.Equal(t, "ran\nsame\nafter\n", text)
	text, err = run(t, c, read(same), client.SolveOpt{})
	require.NoError(t, err)
	require.Equal(t, "ran\n", text, "what follows from the same files is known")
}

func TestProgressCanBeReadAfterTheBuild(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("after-"), "latest", newImage(t, 1, "amd64"))
	def := marshal(t, llb.Image(ref))
	vertex := digest.FromBytes(def.ToPB().Def[0]).String()
	opt := exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard})
	opt.Ref = unique("ref-")
	_, _, err := solve(t, c, def, opt)
	require.NoError(t, err)

	within(t, 10*time.Second, "the progress of an ended build", func() {
		stream, err := c.ControlClient().Status(testContext(t), &controlapi.StatusRequest{Ref: opt.Ref})
		require.NoError(t, err)
		header, err := stream.Header()
		require.NoError(t, err)
		stamp := header.Get("buildkit-current-timestamp")
		require.Len(t, stamp, 1)
		_, err = time.Parse(time.RFC3339Nano, stamp[0])
		require.NoError(t, err)
		found := false
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			for _, v := range resp.Vertexes {
				found = found || v.Digest == vertex
			}
		}
		require.True(t, found)
	})
}
