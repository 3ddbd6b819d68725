package conformance

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

// buildx runs the released command, which is at $BUILDX, with a configuration of
// its own.
func buildx(t *testing.T, config string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, env(t, "BUILDX"), args...)
	cmd.Env = append(os.Environ(), "BUILDX_CONFIG="+config, "DOCKER_CONFIG="+config, "HOME="+config)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	require.NoError(t, cmd.Run(), "buildx %s: %s", strings.Join(args, " "), &messages)
	return out.String()
}

func TestBuildxDrivesTheDaemonAsARemoteBuilder(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("buildx-")
	ref := r.push(name, "latest", newImage(t, 1, "amd64"))
	opt := toArchive()
	opt.Ref = unique("ref-")
	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), opt)
	require.NoError(t, err)
	stored(t, c, opt.Ref)
	config := t.TempDir()
	buildx(t, config, "create", "--name", "remote", "--driver", "remote", env(t, "THUNKD_ADDR"))

	inspected := buildx(t, config, "inspect", "remote", "--bootstrap")
	require.Contains(t, inspected, "Status:           running")
	workers, err := c.ListWorkers(testContext(t))
	require.NoError(t, err)
	require.Contains(t, inspected, "linux/"+workers[0].Platforms[0].Architecture)
	require.Contains(t, inspected, workers[0].BuildkitVersion.Version)

	require.Contains(t, buildx(t, config, "du", "--builder", "remote", "--verbose"), name)
	require.Contains(t, buildx(t, config, "history", "ls", "--builder", "remote", "--no-trunc"), opt.Ref)
	require.Contains(t, buildx(t, config, "history", "ls", "--builder", "remote", "--no-trunc", "--filter", "status=completed"), opt.Ref)
	require.NotContains(t, buildx(t, config, "history", "ls", "--builder", "remote", "--no-trunc", "--filter", "status=error"), opt.Ref)
	buildx(t, config, "history", "rm", "--builder", "remote", opt.Ref)
	require.NotContains(t, buildx(t, config, "history", "ls", "--builder", "remote", "--no-trunc"), opt.Ref)

	buildx(t, config, "prune", "--builder", "remote", "--force", "--max-used-space", "100tb")
	require.Contains(t, buildx(t, config, "du", "--builder", "remote", "--verbose"), name)
	buildx(t, config, "prune", "--builder", "remote", "--force", "--all")
	left, err := c.DiskUsage(testContext(t), client.WithFilter([]string{"type==regular"}))
	require.NoError(t, err)
	for _, record := range left {
		require.NotContains(t, record.Description, name)
	}
}
