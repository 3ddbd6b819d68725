package conformance

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

type nowhere struct{}

func (nowhere) Write(dt []byte) (int, error) { return len(dt), nil }
func (nowhere) Close() error                 { return nil }

func discard(map[string]string) (io.WriteCloser, error) { return nowhere{}, nil }

// archive keeps what an exporter sends.
type archive struct {
	bytes.Buffer
	metadata map[string]string
	closed   bool
}

func newArchive() *archive { return &archive{} }

func (a *archive) open(metadata map[string]string) (io.WriteCloser, error) {
	a.metadata = metadata
	return a, nil
}

func (a *archive) Close() error {
	a.closed = true
	return nil
}

func (a *archive) files(t *testing.T) map[string][]byte {
	t.Helper()
	require.True(t, a.closed, "the archive was not closed")
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(a.Bytes()))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		dt, err := io.ReadAll(r)
		require.NoError(t, err)
		files[header.Name] = dt
	}
}

func (a *archive) index(t *testing.T) ocispecs.Index {
	t.Helper()
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(a.files(t)["index.json"], &index))
	return index
}

// check verifies that files are a whole OCI layout and gives its first manifest.
func check(t *testing.T, files map[string][]byte) (ocispecs.Descriptor, ocispecs.Manifest) {
	t.Helper()
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(files["index.json"], &index))
	require.Contains(t, string(files["oci-layout"]), `"imageLayoutVersion"`)
	require.Len(t, index.Manifests, 1)
	blob := func(desc ocispecs.Descriptor) []byte {
		dt, ok := files["blobs/sha256/"+desc.Digest.Encoded()]
		require.True(t, ok, "%s is not there", desc.Digest)
		require.Equal(t, desc.Digest, digest.FromBytes(dt))
		require.Equal(t, desc.Size, int64(len(dt)))
		return dt
	}
	var manifest ocispecs.Manifest
	require.NoError(t, json.Unmarshal(blob(index.Manifests[0]), &manifest))
	blob(manifest.Config)
	for _, desc := range manifest.Layers {
		blob(desc)
	}
	return index.Manifests[0], manifest
}

func TestAnOCIArchiveIsAWholeLayout(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	ref := r.push(unique("oci-"), "latest", img)
	archive := newArchive()

	resp, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, Output: archive.open, Attrs: map[string]string{"name": "example.com/a:v1"},
	}))

	require.NoError(t, err)
	desc, manifest := check(t, archive.files(t))
	require.Equal(t, resp[imageDigest], desc.Digest.String())
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
	require.Equal(t, "v1", desc.Annotations[ocispecs.AnnotationRefName])
	require.Equal(t, "example.com/a:v1", desc.Annotations["io.containerd.image.name"])
	require.Equal(t, resp[imageDigest], archive.metadata[imageDigest])
}

func TestADockerArchiveCanBeLoaded(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 2, "amd64")
	ref := r.push(unique("docker-"), "latest", img)
	archive := newArchive()

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterDocker, Output: archive.open, Attrs: map[string]string{"name": "example.com/a:v1"},
	}))

	require.NoError(t, err)
	files := archive.files(t)
	_, manifest := check(t, files)
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	require.NoError(t, json.Unmarshal(files["manifest.json"], &images))
	require.Len(t, images, 1)
	require.Equal(t, []string{"example.com/a:v1"}, images[0].RepoTags)
	require.Equal(t, "blobs/sha256/"+manifest.Config.Digest.Encoded(), images[0].Config)
	require.Len(t, images[0].Layers, 2)
	for i, path := range images[0].Layers {
		require.Equal(t, "blobs/sha256/"+img.layers[i].Digest.Encoded(), path)
	}
}

func TestALayoutIsWrittenIntoADirectoryOfTheClient(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	ref := r.push(unique("dir-"), "latest", img)
	dir := t.TempDir()

	resp, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, OutputDir: dir, Attrs: map[string]string{"tar": "false"},
	}))

	require.NoError(t, err)
	desc, manifest := check(t, readTree(t, dir))
	require.Equal(t, resp[imageDigest], desc.Digest.String())
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))

	// Again into the same directory: what is there already is no error.
	_, _, err = solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, OutputDir: dir, Attrs: map[string]string{"tar": "false"},
	}))
	require.NoError(t, err)
	check(t, readTree(t, dir))
}

func TestAClientThatRefusesTheArchiveFailsTheBuild(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("refuse-"), "latest", newImage(t, 1, "amd64"))

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type:   client.ExporterOCI,
		Output: func(map[string]string) (io.WriteCloser, error) { return nil, errors.New("the disk is full") },
	}))

	require.ErrorContains(t, err, "the disk is full")
}

func readTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	}))
	return files
}
