package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// counted is a directory that counts how often its files are opened.
type counted struct {
	fsutil.FS
	opened atomic.Int64
}

func (c *counted) Open(path string) (io.ReadCloser, error) {
	c.opened.Add(1)
	return c.FS.Open(path)
}

func mount(t *testing.T, dir string) *counted {
	t.Helper()
	tree, err := fsutil.NewFS(dir)
	require.NoError(t, err)
	return &counted{FS: tree}
}

// files makes a tree of names and texts; a name that ends with a slash is a directory.
func files(t *testing.T, entries map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range entries {
		path := filepath.Join(dir, name)
		if name[len(name)-1] == '/' {
			require.NoError(t, os.MkdirAll(path, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// tree lists what a directory holds, with what an export keeps of it.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		name, err := filepath.Rel(dir, path)
		require.NoError(t, err)
		if name == "." {
			return nil
		}
		info, err := entry.Info()
		require.NoError(t, err)
		text := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			text, err = os.Readlink(path)
			require.NoError(t, err)
			out = append(out, fmt.Sprintf("%s -> %s", name, text))
			return nil
		case info.Mode().IsRegular():
			dt, err := os.ReadFile(path)
			require.NoError(t, err)
			text = string(dt)
		}
		out = append(out, fmt.Sprintf("%s %s %s", info.Mode(), name, text))
		return nil
	}))
	return out
}

// toDir asks for the files of a result in a directory.
func toDir(dir string, attrs ...string) client.ExportEntry {
	entry := client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		entry.Attrs[attrs[i]] = attrs[i+1]
	}
	return entry
}

// sync sends a directory through the daemon and gives what came out.
func syncDir(t *testing.T, c *client.Client, source fsutil.FS, opts ...llb.LocalOption) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	opts = append([]llb.LocalOption{llb.SharedKeyHint(t.Name())}, opts...)
	opt := exports(toDir(out))
	opt.LocalMounts = map[string]fsutil.FS{"context": source}
	opt.SharedKey = "conformance"
	_, _, err := solve(t, c, marshal(t, llb.Local("context", opts...)), opt)
	require.NoError(t, err)
	return out
}

func TestLocalTreeArrivesAsItIs(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"a/b/deep": "deep", "a-b": "beside", "empty/": "", "z": ""})
	require.NoError(t, os.Chmod(filepath.Join(dir, "a-b"), 0o751|fs.ModeSetuid))
	require.NoError(t, os.Symlink("../nowhere", filepath.Join(dir, "a/link")))
	require.NoError(t, os.Link(filepath.Join(dir, "a-b"), filepath.Join(dir, "hard")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "käse"), bytes.Repeat([]byte("large"), 100_000), 0o600))
	past := time.Unix(1_500_000_000, 123_000_000)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "a/b/deep"), past, past))
	out := syncDir(t, c, mount(t, dir))
	require.Equal(t, tree(t, dir), tree(t, out))
	info, err := os.Stat(filepath.Join(out, "a/b/deep"))
	require.NoError(t, err)
	require.True(t, info.ModTime().Equal(past), "%s", info.ModTime())
	one, err := os.Stat(filepath.Join(out, "a-b"))
	require.NoError(t, err)
	other, err := os.Stat(filepath.Join(out, "hard"))
	require.NoError(t, err)
	require.True(t, os.SameFile(one, other), "a hard link stays one")
	require.Equal(t, uint64(2), one.Sys().(*syscall.Stat_t).Nlink)
}

func TestLocalPatternsSelect(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{
		"keep/a": "a", "keep/b.log": "b", "other/c": "c", "käse/d": "d", "target/e": "e",
	})
	require.NoError(t, os.Symlink("target", filepath.Join(dir, "keep/link")))
	out := syncDir(t, c, mount(t, dir),
		llb.IncludePatterns([]string{"keep", "käse"}),
		llb.ExcludePatterns([]string{"**/*.log"}),
		llb.FollowPaths([]string{"other/../keep/a"}))
	require.Len(t, tree(t, out), 5, "%v", tree(t, out))
	_, err := os.Stat(filepath.Join(out, "keep/b.log"))
	require.True(t, errors.Is(err, os.ErrNotExist))
	_, err = os.Stat(filepath.Join(out, "käse/d"))
	require.NoError(t, err)
}

func TestLocalSendsOnlyWhatChanged(t *testing.T) {
	c := connect(t)
	entries := map[string]string{}
	for i := range 10_000 {
		entries[fmt.Sprintf("%03d/%02d", i/100, i%100)] = "same"
	}
	dir := files(t, entries)
	first := mount(t, dir)
	syncDir(t, c, first)
	require.EqualValues(t, 10_000, first.opened.Load())

	again := mount(t, dir)
	syncDir(t, c, again)
	require.Zero(t, again.opened.Load(), "nothing has changed")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "042/42"), []byte("changed"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(dir, "007/07")))
	changed := mount(t, dir)
	out := syncDir(t, c, changed)
	require.EqualValues(t, 1, changed.opened.Load(), "one file was sent")
	require.Equal(t, tree(t, dir), tree(t, out))

	all := mount(t, dir)
	syncDir(t, c, all, llb.Differ(llb.DiffNone, false))
	require.EqualValues(t, 9_999, all.opened.Load(), "without a differ all files are")
}

func TestLocalThatIsSentWholeIsKeptOnce(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"Dockerfile": "FROM scratch"})
	kept := func() int {
		out := syncDir(t, c, mount(t, dir), llb.Differ(llb.DiffNone, false))
		require.Equal(t, tree(t, dir), tree(t, out))
		du, err := c.DiskUsage(testContext(t))
		require.NoError(t, err)
		return len(du)
	}
	first := kept()
	require.Equal(t, first, kept())
	require.Equal(t, first, kept())
}

func TestLocalManyGenerations(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"a/kept": "kept", "turn": "", "gone": ""})
	require.NoError(t, os.Link(filepath.Join(dir, "a/kept"), filepath.Join(dir, "linked")))
	for turn := range 12 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "turn"), fmt.Appendf(nil, "turn %d", turn), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("new%d", turn)), nil, 0o644))
		if turn == 3 {
			require.NoError(t, os.Remove(filepath.Join(dir, "gone")))
		}
		counting := mount(t, dir)
		out := syncDir(t, c, counting)
		require.Equal(t, tree(t, dir), tree(t, out), "turn %d", turn)
		if turn > 0 {
			require.EqualValues(t, 2, counting.opened.Load(), "turn %d", turn)
		}
	}
}

func TestLocalANewNameOfAFileLeavesItsOthersLinked(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"a": "linked", "d/": ""})
	for _, name := range []string{"d/second", "third", "d/fourth"} {
		require.NoError(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, name)))
		out := syncDir(t, c, mount(t, dir))
		require.Equal(t, tree(t, dir), tree(t, out))
		one, err := os.Stat(filepath.Join(dir, "a"))
		require.NoError(t, err)
		other, err := os.Stat(filepath.Join(out, "a"))
		require.NoError(t, err)
		require.Equal(t, one.Sys().(*syscall.Stat_t).Nlink, other.Sys().(*syscall.Stat_t).Nlink, name)
	}
}

func TestLocalANameThatIsAFileOfItsOwnNowStaysOne(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"a": "linked"})
	first, second := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	require.NoError(t, os.Link(first, second))
	require.Equal(t, tree(t, dir), tree(t, syncDir(t, c, mount(t, dir))))
	before, err := os.Stat(first)
	require.NoError(t, err)
	require.NoError(t, os.Remove(second))
	require.NoError(t, os.WriteFile(second, []byte("linked"), before.Mode()))
	require.NoError(t, os.Chtimes(second, before.ModTime(), before.ModTime()))
	for turn := range 3 {
		counting := mount(t, dir)
		out := syncDir(t, c, counting)
		require.Equal(t, tree(t, dir), tree(t, out))
		other, err := os.Stat(filepath.Join(out, "a"))
		require.NoError(t, err)
		require.EqualValues(t, 1, other.Sys().(*syscall.Stat_t).Nlink, "turn %d", turn)
		if turn > 0 {
			require.Zero(t, counting.opened.Load(), "turn %d", turn)
		}
	}
}

func TestLocalFilesOfBeforeAreInNoLayerAndTakeNothingAway(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	step := box(t, r).Run(sh("echo > /out/made"))
	below := llb.Scratch().File(llb.Mkdir("/etc", 0o755).Mkfile("/etc/below", 0o644, nil))
	dir := files(t, map[string]string{"keep": "keep", "etc/of-before": "", "of-before": ""})
	source := llb.Local("context", llb.SharedKeyHint(t.Name()))
	for turn, gone := range []string{"", "etc", "of-before", "keep"} {
		if gone != "" {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, gone)))
			require.NoError(t, os.WriteFile(filepath.Join(dir, describe("new%d", turn)), nil, 0o644))
		}
		for name, test := range map[string]struct {
			state  llb.State
			layers int
		}{
			"the directory":    {source, 1},
			"a file in it":     {source.File(llb.Mkfile("/made", 0o644, nil)), 2},
			"a merge":          {llb.Merge([]llb.State{below, source}), 2},
			"a step's output":  {step.AddMount("/out", source), 2},
			"what a step made": {llb.Diff(source, step.AddMount("/out", source)), 1},
		} {
			image, plain := newArchive(), newArchive()
			opt := exports(
				client.ExportEntry{Type: client.ExporterOCI, Output: image.open, Attrs: map[string]string{"compression": "uncompressed"}},
				client.ExportEntry{Type: client.ExporterTar, Output: plain.open})
			opt.LocalMounts = map[string]fsutil.FS{"context": mount(t, dir)}
			opt.SharedKey = "conformance"
			_, _, err := solve(t, c, marshal(t, test.state), opt)
			require.NoError(t, err)
			blobs := image.files(t)
			_, manifest := check(t, blobs)
			require.Len(t, manifest.Layers, test.layers, "%s in turn %d", name, turn)
			for _, layer := range manifest.Layers {
				if turn > 1 {
					require.NotContains(t, string(blobs["blobs/sha256/"+layer.Digest.Encoded()]), "of-before", "%s in turn %d", name, turn)
				}
			}
			if name == "a merge" {
				require.Contains(t, plain.files(t), "etc/below", "turn %d", turn)
			}
		}
	}
}

func TestLocalOneTransferForTwoBuildsOfOneSession(t *testing.T) {
	c := connect(t)
	dir := mount(t, files(t, map[string]string{"a": "a", "b": "b"}))
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"context": dir}}
	_, err := c.Build(testContext(t), opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		for _, unique := range []string{"one", "two"} {
			def, err := llb.Local("context", llb.LocalUniqueID(unique)).Marshal(ctx)
			if err != nil {
				return nil, err
			}
			if _, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true}); err != nil {
				return nil, err
			}
		}
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, dir.opened.Load(), "two files, once each")
}

func TestLocalUnknownDirectoryIsAnError(t *testing.T) {
	c := connect(t)
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"other": mount(t, t.TempDir())}}
	_, err := c.Build(testContext(t), opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		def, err := llb.Local("context").Marshal(ctx)
		if err != nil {
			return nil, err
		}
		return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	}, nil)
	require.ErrorContains(t, err, `no access allowed to dir "context"`)
}

func TestLocalReportsItsTransfer(t *testing.T) {
	c := connect(t)
	opt := exports(toDir(filepath.Join(t.TempDir(), "out")))
	opt.LocalMounts = map[string]fsutil.FS{"context": mount(t, files(t, map[string]string{"a": "text"}))}
	_, w, err := solve(t, c, marshal(t, llb.Local("context")), opt)
	require.NoError(t, err)
	found := map[string]bool{}
	for _, s := range w.statuses {
		if s.Completed != nil && s.Current > 0 {
			found[s.ID] = true
		}
	}
	require.True(t, found["transferring context:"], "%v", found)
	require.True(t, found["copying files"] || found["copying files linux/amd64"], "%v", found)
}

func TestLocalExportKeepsOrDeletes(t *testing.T) {
	c := connect(t)
	source := mount(t, files(t, map[string]string{"new": "new", "dir/file": "file"}))
	out := files(t, map[string]string{"old": "old", "dir/old": "old", "new": "before"})
	opt := exports(toDir(out))
	opt.LocalMounts = map[string]fsutil.FS{"context": source}
	_, _, err := solve(t, c, marshal(t, llb.Local("context")), opt)
	require.NoError(t, err)
	require.Len(t, tree(t, out), 5, "%v", tree(t, out))
	dt, err := os.ReadFile(filepath.Join(out, "new"))
	require.NoError(t, err)
	require.Equal(t, "new", string(dt))
}

func TestLocalExportOfPlatforms(t *testing.T) {
	c := connect(t)
	arm := mount(t, files(t, map[string]string{"arm": "arm", "both": "arm"}))
	amd := mount(t, files(t, map[string]string{"amd": "amd", "both": "amd"}))
	build := func(out string, attrs ...string) error {
		opt := exports(toDir(out, attrs...))
		opt.LocalMounts = map[string]fsutil.FS{"arm": arm, "amd": amd}
		_, err := c.Build(testContext(t), opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			result := gateway.NewResult()
			for id, name := range map[string]string{"linux/arm64": "arm", "linux/amd64": "amd"} {
				def, err := llb.Local(name).Marshal(ctx)
				if err != nil {
					return nil, err
				}
				one, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
				if err != nil {
					return nil, err
				}
				result.AddRef(id, one.Ref)
			}
			result.AddMeta(exptypes.ExporterPlatformsKey, []byte(`{"Platforms":[
				{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
				{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}`))
			return result, nil
		}, nil)
		return err
	}
	out := filepath.Join(t.TempDir(), "out")
	require.NoError(t, build(out))
	require.Equal(t, []string{
		"drwxr-xr-x linux_amd64 ", "-rw-r--r-- linux_amd64/amd amd", "-rw-r--r-- linux_amd64/both amd",
		"drwxr-xr-x linux_arm64 ", "-rw-r--r-- linux_arm64/arm arm", "-rw-r--r-- linux_arm64/both arm",
	}, tree(t, out))
	err := build(filepath.Join(t.TempDir(), "flat"), "platform-split", "false")
	require.ErrorContains(t, err, "when split option is disabled")
}

func tarHeaders(t *testing.T, a *archive) []*tar.Header {
	t.Helper()
	require.True(t, a.closed, "the archive was not closed")
	var headers []*tar.Header
	r := tar.NewReader(bytes.NewReader(a.Bytes()))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		require.NoError(t, err)
		headers = append(headers, header)
	}
}

func TestTarExport(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"a/file": "text", "b": "b"})
	require.NoError(t, os.Symlink("a/file", filepath.Join(dir, "link")))
	require.NoError(t, os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "hard")))
	past := time.Unix(1_500_000_000, 600_000_000)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "b"), past, past))
	out := newArchive()
	opt := exports(client.ExportEntry{Type: client.ExporterTar, Output: out.open})
	opt.LocalMounts = map[string]fsutil.FS{"context": mount(t, dir)}
	_, _, err := solve(t, c, marshal(t, llb.Local("context")), opt)
	require.NoError(t, err)
	var lines []string
	for _, h := range tarHeaders(t, out) {
		lines = append(lines, fmt.Sprintf("%c %s %s %o %d:%d", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid))
	}
	require.Equal(t, []string{
		"5 a/  755 0:0", "0 a/file  644 0:0", "0 b  644 0:0", "1 hard b 644 0:0", "2 link a/file 777 0:0",
	}, lines)
	require.Equal(t, int64(1_500_000_001), tarHeaders(t, out)[2].ModTime.Unix(), "to the nearest second")
	require.Equal(t, "text", string(out.files(t)["a/file"]))

	epoch := newArchive()
	opt = exports(client.ExportEntry{
		Type: client.ExporterTar, Output: epoch.open, Attrs: map[string]string{"source-date-epoch": "7"},
	})
	opt.LocalMounts = map[string]fsutil.FS{"context": mount(t, dir)}
	_, _, err = solve(t, c, marshal(t, llb.Local("context")), opt)
	require.NoError(t, err)
	for _, h := range tarHeaders(t, epoch) {
		require.EqualValues(t, 7, h.ModTime.Unix(), h.Name)
	}
}

func TestTarAndLocalOfNothing(t *testing.T) {
	c := connect(t)
	out, dir := newArchive(), filepath.Join(t.TempDir(), "out")
	opt := exports(client.ExportEntry{Type: client.ExporterTar, Output: out.open}, toDir(dir))
	_, err := c.Build(testContext(t), opt, "", func(context.Context, gateway.Client) (*gateway.Result, error) {
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
	require.Empty(t, tarHeaders(t, out))
	require.Empty(t, tree(t, dir))
}

func TestSeveralExportersShareOneResult(t *testing.T) {
	c := connect(t)
	source := mount(t, files(t, map[string]string{"a": "a"}))
	one, two, dir := newArchive(), newArchive(), filepath.Join(t.TempDir(), "out")
	opt := exports(
		client.ExportEntry{Type: client.ExporterTar, Output: one.open},
		client.ExportEntry{Type: client.ExporterTar, Output: two.open},
		toDir(dir))
	opt.LocalMounts = map[string]fsutil.FS{"context": source}
	_, _, err := solve(t, c, marshal(t, llb.Local("context")), opt)
	require.NoError(t, err)
	require.EqualValues(t, 1, source.opened.Load(), "the result was made once")
	require.Equal(t, one.Bytes(), two.Bytes())
	require.Len(t, tree(t, dir), 1)
}

// metadataOf reads a file of length-prefixed entries.
func metadataOf(t *testing.T, path string) map[string]*types.Stat {
	t.Helper()
	dt, err := os.ReadFile(path)
	require.NoError(t, err)
	stats := map[string]*types.Stat{}
	for len(dt) > 0 {
		require.GreaterOrEqual(t, len(dt), 4)
		length := int(binary.LittleEndian.Uint32(dt))
		require.GreaterOrEqual(t, len(dt), 4+length)
		stat := &types.Stat{}
		require.NoError(t, stat.UnmarshalVT(dt[4:4+length]))
		stats[stat.Path], dt = stat, dt[4+length:]
	}
	return stats
}

func TestMetadataComesWithoutTheFilesButThoseThatAreExcepted(t *testing.T) {
	c := connect(t)
	dir := files(t, map[string]string{"d/with": "with", "d/without": "without", "e/f": "f", "top": "top"})
	source := mount(t, dir)

	out := syncDir(t, c, source, llb.MetadataOnlyTransfer([]string{"d/with", "top"}))

	stats := metadataOf(t, filepath.Join(out, ".fsutil-metadata"))
	require.ElementsMatch(t, []string{"d", "d/with", "d/without", "e", "e/f", "top"}, slices.Collect(maps.Keys(stats)))
	require.EqualValues(t, len("without"), stats["d/without"].Size)
	require.Equal(t, map[string]string{"d/with": "with", "top": "top"}, besideMetadata(t, out))
	require.EqualValues(t, 2, source.opened.Load())

	require.NoError(t, os.WriteFile(filepath.Join(dir, "top"), []byte("another"), 0o644))
	out = syncDir(t, c, source, llb.MetadataOnlyTransfer([]string{"d/with", "top"}))
	require.Equal(t, map[string]string{"d/with": "with", "top": "another"}, besideMetadata(t, out))
	require.EqualValues(t, len("another"), metadataOf(t, filepath.Join(out, ".fsutil-metadata"))["top"].Size)
	require.EqualValues(t, 3, source.opened.Load())
}

func besideMetadata(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for name, dt := range readTree(t, dir) {
		if name != ".fsutil-metadata" {
			files[name] = string(dt)
		}
	}
	return files
}
