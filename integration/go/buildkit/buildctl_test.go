package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// buildctl runs the released command, which is at $BUILDCTL.
func buildctl(t *testing.T, stdin []byte, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, env(t, "BUILDCTL"), append([]string{"--addr", env(t, "THUNKD_ADDR")}, args...)...)
	var out, messages bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &messages
	err = cmd.Run()
	return out.String(), messages.String(), err
}

// written gives a definition as buildctl reads it.
func written(t *testing.T, state llb.State) []byte {
	t.Helper()
	var dt bytes.Buffer
	require.NoError(t, llb.WriteTo(marshal(t, state), &dt))
	return dt.Bytes()
}

func TestBuildctlBuildsAndPushes(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, 2, "amd64")
	ref, target := r.push(unique("buildctl-"), "latest", img), unique("buildctl-target-")
	metadata := filepath.Join(t.TempDir(), "metadata.json")

	// The client waits 5 s for a progress that does not end.
	within(t, 5*time.Second, "buildctl build", func() {
		_, messages, err := buildctl(t, written(t, llb.Image(ref)), "build", "--progress=plain",
			"--output", "type=image,name="+r.host+"/"+target+":v1,push=true", "--metadata-file", metadata)
		require.NoError(t, err, messages)
		require.Contains(t, messages, "docker-image://"+ref)
		require.Contains(t, messages, "DONE")
	})

	_, dt := r.raw(target, "v1")
	require.Equal(t, img.layerDigests(), digests(r.manifest(target, "v1").Layers))
	var said map[string]any
	text, err := os.ReadFile(metadata)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &said))
	require.Equal(t, digest.FromBytes(dt).String(), said["containerimage.digest"])
}

func TestBuildctlWritesAnArchive(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, 1, "amd64")
	ref := r.push(unique("buildctl-"), "latest", img)

	out, messages, err := buildctl(t, written(t, llb.Image(ref)), "build", "--progress=plain", "--output", "type=oci")

	require.NoError(t, err, messages)
	archive := newArchive()
	_, _ = archive.WriteString(out)
	require.NoError(t, archive.Close())
	_, manifest := check(t, archive.files(t))
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
}

func TestBuildctlPrintsWhereABuildFailed(t *testing.T) {
	r := newRegistry(t)
	missing := r.host + "/" + unique("missing-") + ":latest"

	_, messages, err := buildctl(t, written(t, llb.Image(missing)), "build", "--progress=plain")

	require.Error(t, err)
	require.Contains(t, messages, missing)
	require.Contains(t, messages, "ERROR")
}

func TestBuildctlShowsTheDaemon(t *testing.T) {
	r := newRegistry(t)
	name := unique("shown-")
	ref := r.push(name, "latest", newImage(t, 1, "amd64"))
	job := unique("ref-")
	_, messages, err := buildctl(t, written(t, llb.Image(ref)), "build", "--progress=plain", "--ref-file", filepath.Join(t.TempDir(), "ref"), "--output", "type=oci,dest="+filepath.Join(t.TempDir(), "a.tar"))
	require.NoError(t, err, messages)

	for _, args := range [][]string{
		{"debug", "info"},
		{"debug", "workers"},
		{"debug", "workers", "--verbose"},
		{"debug", "histories"},
		{"du"},
		{"du", "--verbose"},
		{"prune", "--filter", "id==nothing"},
	} {
		out, messages, err := buildctl(t, nil, args...)
		require.NoError(t, err, "%v: %s", args, messages)
		require.NotEmpty(t, out, "%v", args)
	}
	out, messages, err := buildctl(t, nil, "du", "--verbose")
	require.NoError(t, err, messages)
	require.Contains(t, out, name)
	_, messages, err = buildctl(t, nil, "debug", "logs", job)
	require.Error(t, err)
	require.Contains(t, messages, job)
}
