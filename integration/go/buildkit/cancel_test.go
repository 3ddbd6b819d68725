package conformance

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// hold answers matching requests only once the release is closed; never, if it
// is nil. The registry then answers, unless the caller has gone.
func hold(pattern *regexp.Regexp, release <-chan struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if !pattern.MatchString(r.Method + " " + r.URL.Path) {
			return false
		}
		select {
		case <-release:
			return false
		case <-r.Context().Done():
			return true
		}
	}
}

// running is a build under way.
type running struct {
	cancel context.CancelFunc
	watch  *watch
	err    chan error
}

func start(t *testing.T, c *client.Client, def *llb.Definition, opt client.SolveOpt) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	r := &running{cancel: cancel, watch: newWatch(), err: make(chan error, 1)}
	go func() {
		_, err := c.Solve(ctx, def, opt, r.watch.ch)
		r.err <- err
	}()
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.err:
		r.watch.closed(t)
		return err
	case <-time.After(limit):
		t.Fatal("the build never ended")
		return nil
	}
}

// requireCanceled holds for the caller's own error and for the daemon's.
func requireCanceled(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) {
		require.Equal(t, codes.Canceled, grpcerrors.Code(err), "%v", err)
	}
}

func toArchive() client.SolveOpt {
	return exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard})
}

func TestCancellingABuildStopsItsDownload(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	stopped := make(chan struct{}, 16)
	inner := hold(blobGet, nil)
	p := newProxy(t, func(w http.ResponseWriter, r *http.Request) bool {
		answered := inner(w, r)
		if answered {
			stopped <- struct{}{}
		}
		return answered
	})
	name := unique("cancel-")
	img := newImage(t, 1, "amd64")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	job := start(t, c, def, toArchive())
	p.wait(t, blobGet, 1)

	within(t, 10*time.Second, "the cancelled build", func() {
		job.cancel()
		requireCanceled(t, job.wait(t))
	})

	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("the download went on without anybody who wants it")
	}
}

func TestTheLastBuildOfTwoKeepsTheDownload(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	release := make(chan struct{})
	p := newProxy(t, hold(blobGet, release))
	name := unique("shared-")
	img := newImage(t, 1, "amd64")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	archive := newArchive()

	first := start(t, c, def, toArchive())
	p.wait(t, blobGet, 1)
	second := start(t, c, def, exports(client.ExportEntry{Type: client.ExporterOCI, Output: archive.open}))
	// The second one has joined when its image was resolved.
	second.watch.sees(t, func(s *client.SolveStatus) bool { return len(s.Vertexes) > 0 })
	first.cancel()
	requireCanceled(t, first.wait(t))
	close(release)

	require.NoError(t, second.wait(t))
	_, manifest := check(t, archive.files(t))
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
}

func TestConcurrentBuildsDownloadABlobOnce(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	release := make(chan struct{})
	p := newProxy(t, hold(blobGet, release))
	name := unique("once-")
	img := newImage(t, 2, "amd64")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))

	var jobs []*running
	for range 8 {
		jobs = append(jobs, start(t, c, def, toArchive()))
	}
	p.wait(t, blobGet, 1)
	close(release)

	for _, job := range jobs {
		require.NoError(t, job.wait(t))
	}
	require.Equal(t, 2, p.layerGets(img))
}

func TestACancelledFrontendEndsItsBuild(t *testing.T) {
	c := connect(t)
	ctx, cancel := context.WithCancel(testContext(t))
	w := newWatch()

	within(t, 10*time.Second, "the cancelled build", func() {
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, _ gateway.Client) (*gateway.Result, error) {
			cancel()
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}, w.ch)
		require.Error(t, err)
		w.closed(t)
	})
}

func TestALostClientEndsItsBuild(t *testing.T) {
	r := newRegistry(t)
	stopped := make(chan struct{}, 16)
	inner := hold(blobGet, nil)
	p := newProxy(t, func(w http.ResponseWriter, r *http.Request) bool {
		answered := inner(w, r)
		if answered {
			stopped <- struct{}{}
		}
		return answered
	})
	name := unique("lost-")
	r.push(name, "latest", newImage(t, 1, "amd64"))
	c := connect(t)
	job := start(t, c, marshal(t, llb.Image(p.host+"/"+name+":latest")), toArchive())
	p.wait(t, blobGet, 1)

	require.NoError(t, c.Close())

	require.Error(t, job.wait(t))
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("the download went on for a client that is gone")
	}
}
