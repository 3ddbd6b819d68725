package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// extracted counts, by layer, how often a vertex said that it unpacks one.
func extracted(w *watch, vertex digest.Digest, img image) []int {
	counts := make([]int, len(img.layers))
	for _, status := range w.statuses {
		for i, layer := range img.layers {
			if status.ID == "extracting "+layer.Digest.String() && status.Vertex == vertex && status.Completed != nil {
				counts[i]++
			}
		}
	}
	return counts
}

func TestAnImageIsUnpackedWhereThatIsAskedFor(t *testing.T) {
	thunkOnly(t, "its OCI worker has no images")
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	ref := r.push(unique("unpack-"), "latest", img)
	def := marshal(t, llb.Image(ref))
	vertex := digest.FromBytes(def.ToPB().Def[0])
	export := func(attrs map[string]string) (*watch, error) {
		attrs["name"] = "example.com/" + unique("unpacked-")
		_, w, err := solve(t, c, def, exports(client.ExportEntry{Type: client.ExporterImage, Attrs: attrs}))
		return w, err
	}

	w, err := export(map[string]string{})
	require.NoError(t, err)
	require.Equal(t, []int{0, 0, 0}, extracted(w, vertex, img))
	w, err = export(map[string]string{"unpack": "true", "store": "false"})
	require.NoError(t, err)
	require.Equal(t, []int{0, 0, 0}, extracted(w, vertex, img), "there is no image to unpack")
	w, err = export(map[string]string{"unpack": "true"})
	require.NoError(t, err)
	require.Equal(t, []int{1, 1, 1}, extracted(w, vertex, img))
	_, err = export(map[string]string{"unpack": "true", "rewrite-timestamp": "true"})
	require.ErrorContains(t, err, "conflicts with")
}

func TestALazyLayerIsFetchedAndUnpackedUnderItsImageWhateverStepIsTheCause(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	ref := r.push(unique("cause-"), "latest", img)
	state := box(t, r).Run(sh("busybox cat /m/file-0 > /copy"), llb.AddMount("/m", llb.Image(ref), llb.Readonly)).Root()
	def := marshal(t, state)
	var vertex digest.Digest
	for _, op := range def.ToPB().Def {
		if bytes.Contains(op, []byte(ref)) {
			vertex = digest.FromBytes(op)
		}
	}

	_, w, err := solve(t, c, def, client.SolveOpt{})

	require.NoError(t, err)
	require.Equal(t, []int{1, 1, 1}, extracted(w, vertex, img))
	for _, layer := range img.layers {
		var last *client.VertexStatus
		for _, status := range w.statuses {
			if status.ID == layer.Digest.String() {
				require.Equal(t, vertex, status.Vertex)
				last = status
			}
		}
		require.NotNil(t, last, "no bytes of the layer were reported")
		require.Equal(t, []int64{layer.Size, layer.Size}, []int64{last.Current, last.Total})
		require.NotNil(t, last.Completed)
	}
	require.NotNil(t, w.last()[vertex.String()].Completed)
}

// agedImage makes an image whose layers each have one file of these times.
func agedImage(t *testing.T, times ...int64) image {
	t.Helper()
	img := image{blobs: map[digest.Digest][]byte{}}
	config := ocispecs.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispecs.RootFS{Type: "layers"}}
	for i, seconds := range times {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		text := []byte(unique("text-"))
		require.NoError(t, w.WriteHeader(&tar.Header{Name: describe("f%d", i), Mode: 0o640, Uid: i, Size: int64(len(text)), ModTime: time.Unix(seconds, 0)}))
		_, err := w.Write(text)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		img.layers = append(img.layers, img.add(ocispecs.MediaTypeImageLayer, archive.Bytes()))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(archive.Bytes()))
	}
	desc := img.add(ocispecs.MediaTypeImageConfig, encode(t, config))
	img.config = desc.Digest
	img.root = img.add(ocispecs.MediaTypeImageManifest, encode(t, ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, Config: desc, Layers: img.layers,
	}))
	return img
}

// entriesOf reads a layer, gzip or not.
func entriesOf(t *testing.T, dt []byte) ([]*tar.Header, digest.Digest) {
	t.Helper()
	if z, err := gzip.NewReader(bytes.NewReader(dt)); err == nil {
		dt, err = io.ReadAll(z)
		require.NoError(t, err)
	}
	var out []*tar.Header
	r := tar.NewReader(bytes.NewReader(dt))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, digest.FromBytes(dt)
		}
		require.NoError(t, err)
		out = append(out, header)
	}
}

func TestTimesAboveTheBaseAreNoLaterThanTheEpoch(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := agedImage(t, 1_500_000_000, 1_800_000_000, 1_400_000_000, 1_900_000_000)
	ref, target := r.push(unique("aged-"), "latest", img), unique("aged-target-")
	var all ocispecs.Image
	require.NoError(t, json.Unmarshal(img.blobs[img.config], &all))
	base := all
	base.RootFS.DiffIDs = all.RootFS.DiffIDs[:2]

	for name, test := range map[string]struct {
		base  *ocispecs.Image
		times []int64
	}{
		"with a base": {&base, []int64{1_500_000_000, 1_800_000_000, 1_400_000_000, 1_600_000_000, 1_600_000_000}},
		"without one": {nil, []int64{1_500_000_000, 1_600_000_000, 1_400_000_000, 1_600_000_000, 1_600_000_000}},
	} {
		t.Run(name, func(t *testing.T) {
			export := push(r.host+"/"+target+":v1", "rewrite-timestamp", "true", "source-date-epoch", "1600000000")
			_, _, err := build(t, c, exports(export), func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				state := llb.Image(ref).File(llb.Mkfile("/made", 0o644, []byte(name), llb.WithCreatedTime(time.Unix(1_700_000_000, 0))))
				res, err := solveState(ctx, c, state, false)
				if err != nil {
					return nil, err
				}
				if test.base != nil {
					dt, err := json.Marshal(test.base)
					if err != nil {
						return nil, err
					}
					res.AddMeta(exptypes.ExporterImageBaseConfigKey, dt)
				}
				return res, nil
			})

			require.NoError(t, err)
			manifest := r.manifest(target, "v1")
			config := r.imageConfig(target, manifest.Config.Digest)
			require.Len(t, manifest.Layers, len(test.times))
			for i, layer := range manifest.Layers {
				headers, diffID := entriesOf(t, r.blob(target, layer.Digest))
				require.Equal(t, diffID, config.RootFS.DiffIDs[i])
				last := headers[len(headers)-1]
				require.Equal(t, test.times[i], last.ModTime.Unix(), last.Name)
				if i < len(img.layers) {
					require.Equal(t, []any{describe("f%d", i), int64(0o640), i}, []any{last.Name, last.Mode, last.Uid})
				}
				if i < 2 && test.base != nil {
					require.Equal(t, img.layers[i].Digest, layer.Digest, "layers of the base stay as they are")
				}
			}
		})
	}
}

// platforms is a frontend that gives each platform a file of its name, and one that both have.
func platforms(shared bool, names ...string) gateway.BuildFunc {
	return func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res := gateway.NewResult()
		var list exptypes.Platforms
		for _, name := range names {
			state := llb.Scratch().File(llb.Mkdir("/d", 0o755, created)).File(llb.Mkfile("/d/"+filepath.Base(name), 0o644, []byte(name), created))
			if shared {
				state = state.File(llb.Mkfile("/same", 0o644, []byte(name), created))
			}
			one, err := solveState(ctx, c, state, false)
			if err != nil {
				return nil, err
			}
			ref, err := one.SingleRef()
			if err != nil {
				return nil, err
			}
			list.Platforms = append(list.Platforms, exptypes.Platform{ID: name, Platform: ocispecs.Platform{OS: "linux", Architecture: filepath.Base(name)}})
			res.AddRef(name, ref)
		}
		dt, err := json.Marshal(list)
		res.AddMeta(exptypes.ExporterPlatformsKey, dt)
		return res, err
	}
}

func TestADirectoryKeepsOrLosesWhatTheResultDoesNotHave(t *testing.T) {
	c := connect(t)
	for name, test := range map[string]struct {
		attrs    map[string]string
		expected []string
	}{
		"copy": {nil, []string{
			"mine", "linux_amd64/old", "linux_amd64/d/amd64", "linux_arm64/d/arm64",
		}},
		"delete": {map[string]string{"mode": "delete"}, []string{"linux_amd64/d/amd64", "linux_arm64/d/arm64"}},
		"side by side": {map[string]string{"platform-split": "false"}, []string{
			"mine", "linux_amd64/old", "d/amd64", "d/arm64",
		}},
		"side by side, delete": {map[string]string{"platform-split": "false", "mode": "delete"}, []string{"d/amd64", "d/arm64"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, map[string]string{"mine": "mine", "linux_amd64/old": "old"})
			opt := exports(client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir, Attrs: test.attrs})
			_, _, err := build(t, c, opt, platforms(false, "linux/amd64", "linux/arm64"))
			require.NoError(t, err)
			var names []string
			for name := range readTree(t, dir) {
				names = append(names, name)
			}
			require.ElementsMatch(t, test.expected, names)
		})
	}
}

func TestPlatformsSideBySideHaveNoFileInCommon(t *testing.T) {
	c := connect(t)
	for _, mode := range []string{"copy", "delete"} {
		opt := exports(toDir(t.TempDir(), "platform-split", "false", "mode", mode))
		_, _, err := build(t, c, opt, platforms(true, "linux/amd64", "linux/arm64"))
		require.ErrorContains(t, err, "cannot overwrite same from linux/")
		require.NotContains(t, err.Error(), "did not take", "it is not the client that refuses")
	}
}

func TestOnePlatformHasADirectoryWhereThatIsAskedFor(t *testing.T) {
	c := connect(t)
	for split, expected := range map[string]string{"true": "linux_amd64/d/amd64", "false": "d/amd64"} {
		dir := t.TempDir()
		_, _, err := build(t, c, exports(toDir(dir, "platform-split", split)), platforms(false, "linux/amd64"))
		require.NoError(t, err)
		files := readTree(t, dir)
		require.Len(t, files, 1)
		require.Contains(t, files, expected)
	}
	_, _, err := build(t, c, exports(toDir(t.TempDir(), "platform-split", "maybe")), platforms(false, "linux/amd64"))
	require.ErrorContains(t, err, "non-bool value")
}

// The files may be written by a client on another system.
func TestTheDirectoryOfAPlatformIsOneNameOnEverySystem(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	_, _, err := build(t, c, exports(toDir(dir, "platform-split", "true")), platforms(false, `..\c:\linux/amd64`))
	require.NoError(t, err)
	files := readTree(t, dir)
	require.Len(t, files, 1)
	require.Contains(t, files, ".._c__linux_amd64/d/amd64")
}

func TestALinkFromTheRootBeginsAtTheDirectoryOfItsPlatform(t *testing.T) {
	c := connect(t)
	run := func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		state := llb.Scratch().File(llb.Mkfile("/file", 0o644, nil))
		for name, target := range map[string]string{"root": "/file", "beside": "file", "above": "/../d//./e/../f"} {
			state = state.File(llb.Symlink(target, "/"+name))
		}
		one, err := solveState(ctx, c, state, false)
		if err != nil {
			return nil, err
		}
		ref, err := one.SingleRef()
		if err != nil {
			return nil, err
		}
		res := gateway.NewResult()
		res.AddRef("linux/amd64", ref)
		dt, err := json.Marshal(exptypes.Platforms{Platforms: []exptypes.Platform{{ID: "linux/amd64", Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}}})
		res.AddMeta(exptypes.ExporterPlatformsKey, dt)
		return res, err
	}
	for split, expected := range map[string]map[string]string{
		"true":  {"root": "/linux_amd64/file", "beside": "file"},
		"false": {"root": "/file", "beside": "file", "above": "/../d//./e/../f"},
	} {
		dir := t.TempDir()
		_, _, err := build(t, c, exports(toDir(dir, "platform-split", split)), run)
		require.NoError(t, err)
		for name, target := range expected {
			path := filepath.Join(dir, name)
			if split == "true" {
				path = filepath.Join(dir, "linux_amd64", name)
			}
			found, err := os.Readlink(path)
			require.NoError(t, err)
			require.Equal(t, target, found, "%s, split: %s", name, split)
		}
	}
}

func TestExportedFilesAreOfTheEpoch(t *testing.T) {
	c := connect(t)
	epoch := time.Unix(1_234_567_890, 0)
	for name, run := range map[string]gateway.BuildFunc{
		"one": platforms(false, "linux/amd64"), "two": platforms(false, "linux/amd64", "linux/arm64"),
	} {
		dir, a := t.TempDir(), newArchive()
		attrs := map[string]string{"source-date-epoch": "1234567890"}
		_, _, err := build(t, c, exports(
			client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir, Attrs: attrs},
			client.ExportEntry{Type: client.ExporterTar, Output: a.open, Attrs: attrs},
		), run)
		require.NoError(t, err, name)
		headers, _ := entriesOf(t, a.Bytes())
		require.NotEmpty(t, headers)
		for _, header := range headers {
			require.True(t, header.ModTime.Equal(epoch), "%s %s", header.Name, header.ModTime)
			info, err := os.Stat(filepath.Join(dir, strings.TrimSuffix(header.Name, "/")))
			require.NoError(t, err)
			require.True(t, info.ModTime().Equal(epoch), "%s %s", header.Name, info.ModTime())
		}
	}
}

func TestExportsTakeTheEpochOfTheBuildArgumentIfItIsATime(t *testing.T) {
	c := connect(t)
	frontend := func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := solveState(ctx, c, llb.Scratch().File(llb.Mkfile("/f", 0o644, nil, created)), false)
		if err == nil {
			res.AddMeta(commonexptypes.ExporterEpochKey, []byte("7"))
		}
		return res, err
	}
	for _, test := range []struct {
		argument string
		expected int64
	}{
		{"1234567890", 1_234_567_890},
		// What the time is taken from, which the frontend has found out.
		{"context", 7},
		// No time, whatever the Dockerfile says.
		{"", 1_000_000_000},
	} {
		a := newArchive()
		opt := exports(client.ExportEntry{Type: client.ExporterTar, Output: a.open})
		opt.FrontendAttrs = map[string]string{"build-arg:SOURCE_DATE_EPOCH": test.argument}
		_, _, err := build(t, c, opt, frontend)
		require.NoError(t, err, test.argument)
		headers, _ := entriesOf(t, a.Bytes())
		require.Equal(t, test.expected, headers[len(headers)-1].ModTime.Unix(), test.argument)
	}
}
