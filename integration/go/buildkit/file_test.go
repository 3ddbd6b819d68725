package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/stretchr/testify/require"
)

var created = llb.WithCreatedTime(time.Unix(1_000_000_000, 0))

// headers are the entries of a result, exported as a tar.
func headers(t *testing.T, c *client.Client, state llb.State) (map[string]*tar.Header, map[string]string, error) {
	t.Helper()
	a := newArchive()
	_, _, err := solve(t, c, marshal(t, state), exports(client.ExportEntry{Type: client.ExporterTar, Output: a.open}))
	if err != nil {
		return nil, nil, err
	}
	found, texts := map[string]*tar.Header{}, map[string]string{}
	r := tar.NewReader(bytes.NewReader(a.Bytes()))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, texts, nil
		}
		require.NoError(t, err)
		dt, err := io.ReadAll(r)
		require.NoError(t, err)
		name := strings.Trim(header.Name, "/")
		found[name], texts[name] = header, string(dt)
	}
}

// listing says of each file in a result what it is, in the order of the names.
func listing(t *testing.T, c *client.Client, state llb.State) []string {
	t.Helper()
	found, texts, err := headers(t, c, state)
	require.NoError(t, err)
	lines := []string{}
	for name, header := range found {
		what := texts[name]
		switch header.Typeflag {
		case tar.TypeDir:
			what = "/"
		case tar.TypeSymlink:
			what = "-> " + header.Linkname
		case tar.TypeLink:
			what = "=> " + header.Linkname
		}
		mode := fmt.Sprintf("%04o", header.Mode&0o7777)
		if header.Typeflag == tar.TypeSymlink {
			mode = "link"
		}
		lines = append(lines, fmt.Sprintf("%s %s %d:%d %s", name, mode, header.Uid, header.Gid, what))
	}
	sort.Strings(lines)
	return lines
}

// source is a file system to copy from.
func source() llb.State {
	passwd := "root:x:0:0:::\napp:x:10:20:::\n"
	return llb.Scratch().
		File(llb.Mkdir("/d/sub", 0o755, llb.WithParents(true), created)).
		File(llb.Mkfile("/d/a.txt", 0o640, []byte("a"), llb.WithUIDGID(1, 2), created)).
		File(llb.Mkfile("/d/b.md", 0o755, []byte("b"), created)).
		File(llb.Mkfile("/d/sub/c.txt", 0o600, []byte("c"), created)).
		File(llb.Symlink("a.txt", "/d/link", created)).
		File(llb.Symlink("/d", "/to-d", created)).
		File(llb.Symlink("../../../../etc", "/up", created)).
		File(llb.Mkdir("/etc", 0o755, created)).
		File(llb.Mkfile("/etc/passwd", 0o644, []byte(passwd), created)).
		File(llb.Mkfile("/etc/group", 0o644, []byte("staff:x:30:\n"), created))
}

func TestFilesAreMadeAndRemoved(t *testing.T) {
	c := connect(t)
	state := llb.Scratch().
		File(llb.Mkdir("/a/b/c", 0o750, llb.WithParents(true), llb.WithUIDGID(3, 4))).
		File(llb.Mkdir("/a", 0o700).Mkfile("/a/f", 0o4644, []byte("one"), llb.WithUIDGID(5, 6)).
			Mkfile("/a/f", 0o600, []byte("two")).
			Symlink("../x", "/a/l", llb.WithUIDGID(7, 8)).
			Symlink("b", "/a/b-link").
			Mkfile("/a/b-link/through", 0o644, nil)).
		File(llb.Mkfile("/rm1", 0o644, nil).Mkfile("/rm2", 0o644, nil).Mkfile("/keep", 0o644, nil)).
		File(llb.Rm("/rm*", llb.WithAllowWildcard(true)).Rm("/none", llb.WithAllowNotFound(true)).Rm("/a/b-link"))

	require.Equal(t, []string{
		"a 0750 3:4 /",
		"a/b 0750 3:4 /",
		"a/b/c 0750 3:4 /",
		"a/b/through 0644 0:0 ",
		"a/f 0644 5:6 two",
		"a/l link 7:8 -> ../x",
		"keep 0644 0:0 ",
	}, listing(t, c, state))
}

func TestCopiesGoWhereCpPutsThem(t *testing.T) {
	c := connect(t)
	there := llb.Scratch().File(llb.Mkdir("/there", 0o711))
	path := &llb.CopyInfo{CreateDestPath: true}
	contents := &llb.CopyInfo{CreateDestPath: true, CopyDirContentsOnly: true}
	follow := &llb.CopyInfo{CreateDestPath: true, FollowSymlinks: true}
	wildcard := &llb.CopyInfo{CreateDestPath: true, AllowWildcard: true}
	sub := []string{"d/a.txt 0640 1:2 a", "d/b.md 0755 0:0 b", "d/link link 0:0 -> a.txt", "d/sub 0755 0:0 /", "d/sub/c.txt 0600 0:0 c"}
	below := func(prefix string) (out []string) {
		for _, line := range sub {
			out = append(out, prefix+strings.TrimPrefix(line, "d/"))
		}
		return out
	}
	for _, test := range []struct {
		src, dest string
		info      *llb.CopyInfo
		expected  []string
	}{
		{"/d/a.txt", "/f", path, []string{"f 0640 1:2 a"}},
		{"/d/a.txt", "/there", path, []string{"there/a.txt 0640 1:2 a"}},
		{"/d/a.txt", "/new/", path, []string{"new 0755 0:0 /", "new/a.txt 0640 1:2 a"}},
		{"/d/a.txt", "/x/y/f", path, []string{"x 0755 0:0 /", "x/y 0755 0:0 /", "x/y/f 0640 1:2 a"}},
		{"/d", "/e", path, append([]string{"e 0755 0:0 /"}, below("e/")...)},
		{"/d", "/there", path, append([]string{"there/d 0755 0:0 /"}, below("there/d/")...)},
		{"/d", "/there", contents, below("there/")},
		{"/d", "/e/f", contents, append([]string{"e 0755 0:0 /", "e/f 0755 0:0 /"}, below("e/f/")...)},
		{"/d/link", "/l", path, []string{"l link 0:0 -> a.txt"}},
		{"/d/link", "/l", follow, []string{"l 0640 1:2 a"}},
		{"/to-d/b.md", "/f", path, []string{"f 0755 0:0 b"}},
		{"/up/passwd", "/f", path, []string{"f 0644 0:0 root:x:0:0:::\napp:x:10:20:::\n"}},
		{"/d/*.txt", "/w/", wildcard, []string{"w 0755 0:0 /", "w/a.txt 0640 1:2 a"}},
		{"/*/*.md", "/w", wildcard, []string{"w 0755 0:0 b"}},
		{"/d/su[a-c]", "/w/", wildcard, []string{"w 0755 0:0 /", "w/sub 0755 0:0 /", "w/sub/c.txt 0600 0:0 c"}},
	} {
		t.Run(test.src+" to "+test.dest, func(t *testing.T) {
			found := listing(t, c, there.File(llb.Copy(source(), test.src, test.dest, test.info)))
			expected := append([]string{"there 0711 0:0 /"}, test.expected...)
			sort.Strings(expected)
			require.Equal(t, expected, found)
		})
	}
}

func TestPatternsChooseWhatIsCopied(t *testing.T) {
	c := connect(t)
	for _, test := range []struct {
		include, exclude, expected []string
	}{
		{[]string{"**/*.txt"}, nil, []string{"a.txt", "sub", "sub/c.txt"}},
		{nil, []string{"sub", "link"}, []string{"a.txt", "b.md"}},
		{nil, []string{"**", "!sub/c.txt"}, []string{"sub", "sub/c.txt"}},
		{[]string{"sub"}, []string{"sub/c.txt"}, []string{"sub"}},
		{[]string{"nothing"}, nil, []string{}},
	} {
		found, _, err := headers(t, c, llb.Scratch().File(llb.Copy(source(), "/d", "/", &llb.CopyInfo{
			CopyDirContentsOnly: true, IncludePatterns: test.include, ExcludePatterns: test.exclude,
		})))
		require.NoError(t, err)
		names := []string{}
		for name := range found {
			names = append(names, name)
		}
		sort.Strings(names)
		require.Equal(t, test.expected, names, "%q without %q", test.include, test.exclude)
	}
}

func TestCopiesHaveTheAttributesThatAreStated(t *testing.T) {
	c := connect(t)
	copied := func(info llb.CopyInfo) []string {
		info.IncludePatterns = []string{"a.txt", "sub"}
		return listing(t, c, llb.Scratch().File(llb.Copy(source(), "/d", "/e", &info)))
	}
	require.Equal(t, []string{
		"e 0710 0:0 /", "e/a.txt 0710 1:2 a", "e/sub 0710 0:0 /", "e/sub/c.txt 0710 0:0 c",
	}, copied(llb.CopyInfo{Mode: &llb.ChmodOpt{Mode: 0o710}}))
	require.Equal(t, []string{
		"e 0700 0:0 /", "e/a.txt 0600 1:2 a", "e/sub 0700 0:0 /", "e/sub/c.txt 0600 0:0 c",
	}, copied(llb.CopyInfo{Mode: &llb.ChmodOpt{ModeStr: "u+rwX,go="}}))
	byID := llb.WithUIDGID(11, 12).(llb.ChownOpt)
	require.Equal(t, []string{
		"e 0755 11:12 /", "e/a.txt 0640 11:12 a", "e/sub 0755 11:12 /", "e/sub/c.txt 0600 11:12 c",
	}, copied(llb.CopyInfo{ChownOpt: &byID}))

	// Names are those of what is copied onto.
	named := listing(t, c, source().File(llb.Copy(source(), "/d/a.txt", "/n/", &llb.CopyInfo{CreateDestPath: true}, llb.WithUser("app:staff"))))
	require.Contains(t, named, "n 0755 10:30 /")
	require.Contains(t, named, "n/a.txt 0640 10:30 a")
	unknown := listing(t, c, source().File(llb.Mkfile("/n", 0o644, nil, llb.WithUser("nobody"))))
	require.Contains(t, unknown, "n 0644 0:0 ")

	stamp := time.Unix(1_234_567_890, 0)
	found, _, err := headers(t, c, llb.Scratch().
		File(llb.Copy(source(), "/d", "/x/y", &llb.CopyInfo{CreateDestPath: true, CreatedTime: &stamp})).
		File(llb.Copy(source(), "/d", "/kept", &llb.CopyInfo{})))
	require.NoError(t, err)
	names := []string{"x/y/a.txt", "x/y/link", "x/y/sub/c.txt"}
	if os.Getenv("DAEMON") != "buildkitd" {
		// It lets the contents of directories change their times.
		names = append(names, "x", "x/y", "x/y/sub")
	}
	for _, name := range names {
		require.Equal(t, stamp.Unix(), found[name].ModTime.Unix(), name)
	}
	require.Equal(t, int64(1_000_000_000), found["kept/a.txt"].ModTime.Unix())
}

func TestWhatIsInTheWayGivesWayIfItIsToldTo(t *testing.T) {
	c := connect(t)
	there := llb.Scratch().File(llb.Mkdir("/a.txt", 0o755)).File(llb.Mkfile("/sub", 0o644, []byte("file")))
	info := llb.CopyInfo{CopyDirContentsOnly: true, IncludePatterns: []string{"a.txt", "sub"}}
	_, _, err := headers(t, c, there.File(llb.Copy(source(), "/d", "/", &info)))
	require.ErrorContains(t, err, "cannot replace to directory")
	info.AlwaysReplaceExistingDestPaths = true
	require.Equal(t, []string{"a.txt 0640 1:2 a", "sub 0755 0:0 /", "sub/c.txt 0600 0:0 c"},
		listing(t, c, there.File(llb.Copy(source(), "/d", "/", &info))))
}

func TestArchivesAreUnpackedIfTheyAreToBe(t *testing.T) {
	c := connect(t)
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	w := tar.NewWriter(zip)
	for _, header := range []*tar.Header{
		{Name: "p/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 3, Gid: 4},
		{Name: "p/f", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 5, Gid: 6, Size: 1},
		{Name: "p/l", Typeflag: tar.TypeSymlink, Linkname: "/f", Mode: 0o777},
	} {
		require.NoError(t, w.WriteHeader(header))
		if header.Size > 0 {
			_, err := w.Write([]byte("x"))
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, zip.Close())
	archives := llb.Scratch().
		File(llb.Mkfile("/a.tgz", 0o644, packed.Bytes())).
		File(llb.Mkfile("/plain", 0o644, []byte("no archive")))
	info := &llb.CopyInfo{AttemptUnpack: true, CreateDestPath: true, AllowWildcard: true}

	require.Equal(t, []string{
		"to 0755 0:0 /", "to/p 0750 3:4 /", "to/p/f 0640 5:6 x", "to/p/l link 0:0 -> /f", "to/plain 0644 0:0 no archive",
	}, listing(t, c, llb.Scratch().File(llb.Copy(archives, "/*", "/to/", info))))
}

func TestLinksOfTheDestinationLeadNowhereElse(t *testing.T) {
	c := connect(t)
	there := llb.Scratch().
		File(llb.Symlink("../../../../../in", "/up")).
		File(llb.Symlink("/in/deep", "/abs"))
	state := there.File(llb.Copy(source(), "/d/a.txt", "/up/", &llb.CopyInfo{CreateDestPath: true})).
		File(llb.Mkfile("/abs/f", 0o644, []byte("f")).
			Mkdir("/up/x/y", 0o755, llb.WithParents(true)))
	_, _, err := headers(t, c, state)
	require.Error(t, err, "/in/deep is not there")

	state = there.File(llb.Copy(source(), "/d/a.txt", "/abs/", &llb.CopyInfo{CreateDestPath: true})).
		File(llb.Mkfile("/abs/f", 0o644, []byte("f")).Mkdir("/up/x/y", 0o755, llb.WithParents(true)))
	require.Equal(t, []string{
		"abs link 0:0 -> /in/deep",
		"in 0755 0:0 /",
		"in/deep 0755 0:0 /",
		"in/deep/a.txt 0640 1:2 a",
		"in/deep/f 0644 0:0 f",
		"in/x 0755 0:0 /",
		"in/x/y 0755 0:0 /",
		"up link 0:0 -> ../../../../../in",
	}, listing(t, c, state))
}

func TestAFailedActionSaysWhichOneItWas(t *testing.T) {
	c := connect(t)
	state := llb.Scratch().File(llb.Mkdir("/a", 0o755).Mkfile("/a/f", 0o644, nil).Mkfile("/b/f", 0o644, nil))
	_, _, err := headers(t, c, state)
	require.ErrorContains(t, err, "/b/f")
	// buildkitd tells those alone who look into what failed.
	var failed *errdefs.SolveError
	if errors.As(err, &failed) || os.Getenv("DAEMON") != "buildkitd" {
		require.NotNil(t, failed.Solve.GetFile(), "%v", failed.Solve)
		require.Equal(t, int64(2), failed.Solve.GetFile().GetIndex())
	}

	_, _, err = headers(t, c, llb.Scratch().File(llb.Copy(source(), "/not-there", "/")))
	require.ErrorContains(t, err, `"/not-there": not found`)
	_, _, err = headers(t, c, llb.Scratch().File(llb.Copy(source(), "/d", "/", &llb.CopyInfo{
		IncludePatterns: []string{"a.txt"}, RequiredPaths: []string{"/d/x"},
	})))
	require.ErrorContains(t, err, "not found")
	_, _, err = headers(t, c, source().File(llb.Rm("/not-there")))
	require.ErrorContains(t, err, "no such file or directory")
}

func TestACopyOfUnchangedFilesIsNotMadeAgain(t *testing.T) {
	c := connect(t)
	mark := unique("cached-")
	build := func(other string) bool {
		from := llb.Scratch().
			File(llb.Mkfile("/f", 0o644, []byte(mark)).Mkfile("/other", 0o644, []byte(other)))
		state := llb.Scratch().File(llb.Copy(from, "/f", "/"+mark))
		_, w, err := solve(t, c, marshal(t, state), exports(client.ExportEntry{Type: client.ExporterTar, Output: discard}))
		require.NoError(t, err)
		for _, vertex := range w.last() {
			if contains(vertex.Name, "copy /f /"+mark) {
				return vertex.Cached
			}
		}
		t.Fatal("the copy was never reported")
		return false
	}
	require.False(t, build("one"))
	require.True(t, build("two"), "the file that is copied is the same")
}

func TestADiffHasWhatTheUpperSideHasMore(t *testing.T) {
	c := connect(t)
	lower := source()
	upper := lower.File(llb.Mkfile("/new", 0o644, []byte("new")).Mkfile("/d/sub/n", 0o644, nil))
	diff := listing(t, c, llb.Diff(lower, upper))
	require.Contains(t, diff, "new 0644 0:0 new")
	require.Contains(t, diff, "d/sub/n 0644 0:0 ")
	require.NotContains(t, strings.Join(diff, "\n"), "passwd")

	// Unrelated sides are compared file by file.
	one := llb.Scratch().File(llb.Mkfile("/same", 0o644, []byte("same"), created).Mkfile("/old", 0o644, []byte("old"), created))
	two := llb.Scratch().File(llb.Mkfile("/same", 0o644, []byte("same"), created)).File(llb.Mkfile("/two", 0o644, []byte("two"), created))
	require.Equal(t, []string{"two 0644 0:0 two"}, listing(t, c, llb.Diff(one, two)))
	require.Empty(t, listing(t, c, llb.Diff(one, one)))
	require.Equal(t, listing(t, c, one), listing(t, c, llb.Diff(llb.Scratch(), one)))
	merged := listing(t, c, llb.Merge([]llb.State{one, llb.Diff(one, two)}))
	require.Equal(t, []string{"same 0644 0:0 same", "two 0644 0:0 two"}, merged)
}

func TestAFrontendReadsTheFilesOfAResult(t *testing.T) {
	c := connect(t)
	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := solveState(ctx, c, source(), false)
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		read := func(path string, r *gateway.FileRange) string {
			dt, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: path, Range: r})
			require.NoError(t, err, path)
			return string(dt)
		}
		require.Equal(t, "a", read("/d/a.txt", nil))
		require.Equal(t, "a", read("to-d/link", nil))
		require.Equal(t, "root", read("/up/passwd", &gateway.FileRange{Length: 4}))
		require.Equal(t, "app", read("/etc/passwd", &gateway.FileRange{Offset: 14, Length: 3}))

		entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/d"})
		require.NoError(t, err)
		names := []string{}
		for _, entry := range entries {
			names = append(names, entry.Path)
		}
		require.Equal(t, []string{"a.txt", "b.md", "link", "sub"}, names)
		require.Equal(t, "a.txt", entries[2].Linkname)
		require.True(t, entries[3].IsDir())
		entries, err = ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/d", IncludePattern: "*.txt"})
		require.NoError(t, err)
		require.Len(t, entries, 1)

		stat, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/d/a.txt"})
		require.NoError(t, err)
		require.Equal(t, "a.txt", stat.Path)
		require.Equal(t, []int64{1, 0o640, 1, 2}, []int64{stat.Size, int64(stat.Mode & 0o777), int64(stat.Uid), int64(stat.Gid)})
		require.Equal(t, time.Unix(1_000_000_000, 0).UnixNano(), stat.ModTime)

		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/none"})
		require.ErrorContains(t, err, "no such file or directory")
		_, err = ref.StatFile(ctx, gateway.StatRequest{Path: "/none"})
		require.ErrorContains(t, err, "no such file or directory")
		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/d"})
		require.ErrorContains(t, err, "is not a regular file")
		return gateway.NewResult(), nil
	})
	require.NoError(t, err)
}

func TestANewFileOfTheRootLeavesItsBaseWhereItIs(t *testing.T) {
	thunkOnly(t, "it unpacks the base")
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, nil)
	img := newImage(t, 3, "amd64")
	name, target := unique("blind-"), unique("blind-target-")
	r.push(name, "latest", img)
	from := llb.Scratch().File(llb.Mkfile("/copied", 0o640, []byte("copied")))
	state := llb.Image(p.host + "/" + name + ":latest").
		File(llb.Mkfile("/made", 0o600, []byte("made"), llb.WithUIDGID(1, 2)).Mkfile("/too", 0o644, nil)).
		File(llb.Copy(from, "/copied", "/"))

	_, _, err := solve(t, c, marshal(t, state), exports(push(p.host+"/"+target+":v1")))

	require.NoError(t, err)
	require.Zero(t, p.layerGets(img))
	r.holds(target, img.layerDigests()...)
	found := listing(t, c, state)
	require.Contains(t, found, "made 0600 1:2 made")
	require.Contains(t, found, "too 0644 0:0 ")
	require.Contains(t, found, "copied 0640 0:0 copied")
	require.Equal(t, 3, p.layerGets(img), "the export reads the base")
}

func TestAFailedFileActionShowsWhatItHadAndLeft(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	given := llb.Scratch().File(llb.Mkdir("/foo", 0o700).Mkfile("/foo/bar", 0o600, []byte("given")))
	for name, tt := range map[string]struct {
		state          llb.State
		inputs, mounts int
		// In what the action was to change, and in what it copied from.
		left, from string
	}{
		"a file": {
			llb.Scratch().File(llb.Mkdir("/found", 0o700).Mkfile("/found/foo", 0o600, []byte("given")).Mkfile("/none/foo", 0o600, nil)),
			0, 3, "/found/foo", "",
		},
		"a file before others": {
			llb.Scratch().File(llb.Mkdir("/found", 0o700).Mkfile("/found/foo", 0o600, []byte("given")).Mkfile("/none/foo", 0o600, nil).Mkdir("/after", 0o700)),
			0, 4, "/found/foo", "",
		},
		"a file of an input": {
			given.File(llb.Rm("/foo/none")), 1, 1, "/foo/bar", "",
		},
		"a copy from an input": {
			base.File(llb.Copy(given, "/foo/bar", "/none/baz")), 2, 1, "", "/foo/bar",
		},
		"a copy from an action": {
			base.File(llb.Copy(llb.Mkdir("/foo", 0o700).Mkfile("/foo/bar", 0o600, []byte("given")).WithState(llb.Scratch()), "/foo/bar", "/none/baz")),
			1, 3, "", "/foo/bar",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a file before others" {
				thunkOnly(t, "it names the action that the output is of")
			}
			opt := client.SolveOpt{Ref: unique("failed-")}
			_, _, err := build(t, c, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				_, err := solveState(ctx, c, tt.state, true)
				var solve *errdefs.SolveError
				require.ErrorAs(t, err, &solve)
				require.Len(t, solve.InputIDs, tt.inputs)
				require.Len(t, solve.MountIDs, tt.mounts)
				subject, ok := solve.Subject.(*errdefs.Solve_File)
				require.True(t, ok, "%T", solve.Subject)
				actions := solve.Op.GetFile().Actions
				require.Len(t, actions, tt.mounts)
				failed := solve.MountIDs[subject.File.Index]
				require.NotEmpty(t, failed)
				from := ""
				if second := int(actions[subject.File.Index].SecondaryInput); second >= tt.inputs {
					from = solve.MountIDs[second-tt.inputs]
				} else if second >= 0 {
					from = solve.InputIDs[second]
				}
				require.Equal(t, tt.from != "", from != "")
				if os.Getenv("DAEMON") == "buildkitd" {
					// It shows them to containers alone.
					return gateway.NewResult(), nil
				}
				plain, ctx := bridge(t, opt.Ref)
				read := func(ref, path string) string {
					resp, err := plain.ReadFile(ctx, &gwpb.ReadFileRequest{Ref: ref, FilePath: path})
					require.NoError(t, err)
					return string(resp.Data)
				}
				if tt.left != "" {
					require.Equal(t, "given", read(failed, tt.left))
				} else {
					require.Contains(t, read(failed, "/etc/group"), "audio")
				}
				if from != "" {
					require.Equal(t, "given", read(from, tt.from))
				}
				return gateway.NewResult(), nil
			})
			require.NoError(t, err)
		})
	}
}
