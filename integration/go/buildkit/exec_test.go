package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// box is an image with busybox, for which the machine's own program stands in.
func box(t *testing.T, r registry) llb.State {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/busybox")
	if errors.Is(err, os.ErrNotExist) {
		program, err = os.ReadFile("/bin/busybox")
	}
	require.NoError(t, err, "busybox is not installed: Debian's busybox-static")
	img := newImageOf(t, map[string][]byte{
		"bin/busybox": program,
		"bin/sh":      program,
		"etc/passwd":  []byte("web:x:33:44::/:/bin/sh\n"),
		"etc/group":   []byte("audio:x:29:web\n"),
	})
	return llb.Image(r.push(unique("box-"), "latest", img)).AddEnv("PATH", "/bin")
}

// newImageOf makes an image of one layer with these files.
func newImageOf(t *testing.T, files map[string][]byte) image {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	img := image{blobs: map[digest.Digest][]byte{}}
	img.layers = append(img.layers, img.add(ocispecs.MediaTypeImageLayer, archive.Bytes()))
	desc := img.add(ocispecs.MediaTypeImageConfig, encode(t, ocispecs.Image{
		Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(archive.Bytes())}},
	}))
	img.config = desc.Digest
	img.root = img.add(ocispecs.MediaTypeImageManifest, encode(t, ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispecs.MediaTypeImageManifest,
		Config:    desc,
		Layers:    img.layers,
	}))
	return img
}

func sh(script string) llb.RunOption { return llb.Args([]string{"/bin/busybox", "sh", "-c", script}) }

// run runs a step and gives what it printed.
func run(t *testing.T, c *client.Client, state llb.State, opt client.SolveOpt) (string, error) {
	t.Helper()
	def := marshal(t, state)
	ch := make(chan *client.SolveStatus)
	printed := make(chan string, 1)
	go func() {
		var text strings.Builder
		for status := range ch {
			for _, log := range status.Logs {
				text.Write(log.Data)
			}
		}
		printed <- text.String()
	}()
	_, err := c.Solve(testContext(t), def, opt, ch)
	return <-printed, err
}

func prints(t *testing.T, c *client.Client, expected string, state llb.State, opt client.SolveOpt) {
	t.Helper()
	text, err := run(t, c, state, opt)
	require.NoError(t, err, text)
	require.Equal(t, expected, text)
}

func TestAProcessIsWhatItWasAskedToBe(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	for name, test := range map[string]struct {
		expected string
		options  []llb.RunOption
	}{
		"environment":       {"a b\n", []llb.RunOption{sh("echo $A"), llb.AddEnv("A", "a b")}},
		"working directory": {"/made/here\n0:0\n", []llb.RunOption{sh("busybox pwd; busybox stat -c %u:%g ."), llb.Dir("/made/here")}},
		"user by name":      {"33\n44 29\n", []llb.RunOption{sh("busybox id -u; busybox id -G"), llb.User("web")}},
		"user and group":    {"33\n29\n", []llb.RunOption{sh("busybox id -u; busybox id -G"), llb.User("web:audio")}},
		"user by number":    {"1000\n0\n", []llb.RunOption{sh("busybox id -u; busybox id -G"), llb.User("1000")}},
		"host name":         {"thunkbox\n", []llb.RunOption{sh("busybox hostname"), llb.Hostname("thunkbox")}},
		"default host name": {"buildkitsandbox\n", []llb.RunOption{sh("busybox hostname")}},
		"extra host":        {"192.0.2.7\tdb\n", []llb.RunOption{sh("busybox grep db$ /etc/hosts"), llb.AddExtraHost("db", net.ParseIP("192.0.2.7"))}},
		"no network":        {"1\n", []llb.RunOption{sh("busybox ip -o link | busybox wc -l"), llb.Network(llb.NetModeNone)}},
		"ulimit":            {"99\n100\n", []llb.RunOption{sh("ulimit -Sn; ulimit -Hn"), llb.AddUlimit(llb.UlimitNofile, 99, 100)}},
		"valid exit code":   {"", []llb.RunOption{sh("exit 7"), llb.ValidExitCodes(7)}},
		"proxy":             {"p p\n", []llb.RunOption{sh("echo $HTTP_PROXY $http_proxy"), llb.WithProxy(llb.ProxyEnv{HTTPProxy: "p"})}},
		"capabilities":      {"00000000a80425fb\n0\n2\n", []llb.RunOption{sh("busybox awk '/^(CapEff|NoNewPrivs|Seccomp):/ { print $2 }' /proc/self/status")}},
		"first process":     {"1\n", []llb.RunOption{sh("echo $$")}},
		"shared memory":     {"tmpfs\n", []llb.RunOption{sh("busybox stat -f -c %T /dev/shm")}},
	} {
		t.Run(name, func(t *testing.T) {
			options := append(test.options, llb.IgnoreCache)
			prints(t, c, test.expected, base.Run(options...).Root(), client.SolveOpt{})
		})
	}
}

func TestWhatAStepIsOfDoesNotKeepItFromBeingTried(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	other := llb.Platform(ocispecs.Platform{OS: "linux", Architecture: "s390x"})
	// What an image has may run here, whatever is said of it.
	prints(t, c, "ran", box(t, r).Run(sh("printf ran"), other).Root(), client.SolveOpt{})

	// The header of a program of a machine that nobody emulates.
	program := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	program[16], program[18], program[20] = 2, 0xff, 1
	img := newImageOf(t, map[string][]byte{"bin/busybox": program})
	state := llb.Image(r.push(unique("other-"), "latest", img)).Run(sh("true"), other).Root()
	text, err := run(t, c, state, client.SolveOpt{})
	require.ErrorContains(t, err, "did not complete successfully: exit code:")
	require.Contains(t, text+err.Error(), "format error")
	if os.Getenv("DAEMON") == "thunkd" {
		require.ErrorContains(t, err, "it is of platform linux/s390x")
	}
}

func TestAReadOnlyRootIsNotWritten(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	step := box(t, r).Run(sh("echo 2>/dev/null > /x || echo refused"), llb.ReadonlyRootFS(), llb.IgnoreCache)
	prints(t, c, "refused\n", step.AddMount("/out", llb.Scratch()), client.SolveOpt{})
}

func TestAStepSeesWhatTheOneBeforeWrote(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	first := box(t, r).Run(sh("echo one > /file; busybox rm /etc/group; busybox mkdir /dir")).Root()
	prints(t, c, "one\ngone\n/dir\n", first.Run(sh("busybox cat /file; [ -e /etc/group ] || echo gone; echo /d*r")).Root(), client.SolveOpt{})
}

func TestAFailedProcessTellsItsExitCode(t *testing.T) {
	c, r := connect(t), newRegistry(t)

	text, err := run(t, c, box(t, r).Run(sh("echo before; exit 42")).Root(), client.SolveOpt{})

	require.Equal(t, "before\n", text)
	require.ErrorContains(t, err, `process "/bin/busybox sh -c echo before; exit 42" did not complete successfully: exit code: 42`)
	var exit *gwpb.ExitError
	require.True(t, errors.As(err, &exit), "%+v", err)
	require.Equal(t, uint32(42), exit.ExitCode)
}

func TestAProgramThatIsMissingIsAFailure(t *testing.T) {
	c, r := connect(t), newRegistry(t)

	_, err := run(t, c, box(t, r).Run(llb.Args([]string{"/nothing"})).Root(), client.SolveOpt{})

	require.ErrorContains(t, err, `process "/nothing" did not complete successfully: exit code: 1`)
}

func TestAStepRunsOnceAndIsFoundThen(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	state := box(t, r).Run(sh("echo ran")).Root()
	prints(t, c, "ran\n", state, client.SolveOpt{})
	prints(t, c, "", state, client.SolveOpt{})
}

func TestMountsOfAStep(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	source := base.Run(sh("busybox mkdir -p /d/sub; echo text > /d/sub/file; echo other > /d/top")).Root()
	for name, test := range map[string]struct {
		expected string
		script   string
		mount    llb.RunOption
	}{
		"read-only":     {"text\nrefused\n", "busybox cat /m/d/sub/file; echo x 2>/dev/null > /m/x || echo refused", llb.AddMount("/m", source, llb.Readonly)},
		"selector":      {"text\n", "busybox cat /m/file", llb.AddMount("/m", source, llb.Readonly, llb.SourcePath("/d/sub"))},
		"one file":      {"other\n", "busybox cat /m", llb.AddMount("/m", source, llb.Readonly, llb.SourcePath("/d/top"))},
		"written":       {"text\nx\n", "busybox cat /m/d/sub/file; echo x > /m/x; busybox cat /m/x", llb.AddMount("/m", source)},
		"forced no out": {"x\n", "echo x > /m/x; busybox cat /m/x", llb.AddMount("/m", source, llb.ForceNoOutput)},
		"tmpfs":         {"1024\n", "busybox df -k /m | busybox awk 'NR == 2 { print $2 }'", llb.AddMount("/m", llb.Scratch(), llb.Tmpfs(llb.TmpfsSize(1<<20)))},
		"scratch":       {"0\n", "busybox ls /m | busybox wc -l", llb.AddMount("/m", llb.Scratch())},
		"relative":      {"text\n", "busybox cat /m/file", llb.AddMount("m", source, llb.Readonly, llb.SourcePath("/d/sub"))},
	} {
		t.Run(name, func(t *testing.T) {
			prints(t, c, test.expected, base.Run(sh(test.script), test.mount, llb.IgnoreCache).Root(), client.SolveOpt{})
		})
	}
}

func TestAMountsOutputIsWhatWasWrittenToIt(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	step := base.Run(sh("echo made > /out/file; echo also > /beside"))
	out := step.AddMount("/out", llb.Scratch())
	prints(t, c, "made\n1\nno\n", base.Run(sh("busybox cat /m/file; busybox ls /m | busybox wc -l; [ -e /beside ] || echo no"), llb.AddMount("/m", out, llb.Readonly)).Root(), client.SolveOpt{})
}

func TestMountPointsDoNotStayInTheResult(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	first := base.Run(sh("true"), llb.AddMount("/point", llb.Scratch(), llb.ForceNoOutput)).Root()
	look := "for f in /point /etc/hosts /etc/resolv.conf; do [ -e /m$f ] && echo $f; done; true"
	prints(t, c, "", base.Run(sh(look), llb.AddMount("/m", first, llb.Readonly)).Root(), client.SolveOpt{})
}

func TestACacheMountKeepsWhatWasWritten(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	for name, sharing := range map[string]llb.CacheMountSharingMode{
		"shared": llb.CacheMountShared, "private": llb.CacheMountPrivate, "locked": llb.CacheMountLocked,
	} {
		t.Run(name, func(t *testing.T) {
			id := unique("cache-")
			mount := func(initial llb.State) llb.RunOption {
				return llb.AddMount("/cache", initial, llb.AsPersistentCacheDir(id, sharing))
			}
			step := func(script string, initial llb.State) llb.State {
				return base.Run(sh(script), mount(initial), llb.AddEnv("ONCE", unique(""))).Root()
			}
			prints(t, c, "", step("echo kept > /cache/file", llb.Scratch()), client.SolveOpt{})
			prints(t, c, "kept\n", step("busybox cat /cache/file", llb.Scratch()), client.SolveOpt{})
			prints(t, c, "busybox sh\nnot\n", step("echo $(busybox ls /cache/bin); [ -e /cache/file ] || echo not", base), client.SolveOpt{})
		})
	}
}

func TestABuildThatIgnoresTheCacheBeginsWithNewCacheMounts(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	id := unique("cache-")
	step := func(on llb.State, cache, script string, initial llb.State, options ...llb.RunOption) llb.State {
		mount := llb.AddMount("/cache", initial, llb.AsPersistentCacheDir(cache, llb.CacheMountShared))
		return on.Run(append(options, sh(script), mount, llb.AddEnv("ONCE", unique("")))...).Root()
	}
	list, write := "busybox ls /cache", "busybox ls /cache; echo > /cache/file"
	seed := llb.Scratch().File(llb.Mkfile("/seed", 0o644, nil))
	for _, initial := range []llb.State{llb.Scratch(), seed} {
		_, err := run(t, c, step(base, id, "echo > /cache/old", initial), client.SolveOpt{})
		require.NoError(t, err)
	}
	prints(t, c, "", step(base, id+"-other", write, llb.Scratch()), client.SolveOpt{})

	first := step(base, id, write, llb.Scratch(), llb.IgnoreCache)
	second := step(first, id, list, llb.Scratch(), llb.IgnoreCache)
	prints(t, c, "file\n", second, client.SolveOpt{})
	prints(t, c, "file\n", step(base, id, list, llb.Scratch()), client.SolveOpt{})
	prints(t, c, "file\n", step(base, id+"-other", list, llb.Scratch()), client.SolveOpt{})
	prints(t, c, "old\nseed\n", step(base, id, list, seed), client.SolveOpt{})
	prints(t, c, "seed\n", step(base, id, list, seed, llb.IgnoreCache), client.SolveOpt{})
	prints(t, c, "file\n", step(base, id, list, llb.Scratch()), client.SolveOpt{})

	records, err := c.DiskUsage(testContext(t), client.WithFilter([]string{"type==exec.cachemount,mutable,description~=" + id}))
	require.NoError(t, err)
	require.NotEmpty(t, records)
	for _, record := range records {
		require.True(t, record.Mutable, record.Description)
	}
}

func TestASecretIsAFileOrAVariable(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	opt := client.SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"s": []byte("hidden")})}}
	file := func(script string, options ...llb.SecretOption) llb.State {
		return base.Run(sh(script), llb.AddSecret("/run/s", append(options, llb.SecretID("s"))...), llb.IgnoreCache).Root()
	}
	prints(t, c, "hidden5:6 440\n", file("busybox cat /run/s; busybox stat -c '%u:%g %a' /run/s", llb.SecretFileOpt(5, 6, 0o440)), opt)
	prints(t, c, "hidden\n", base.Run(sh("echo $S"), llb.AddSecret("S", llb.SecretID("s"), llb.SecretAsEnv(true)), llb.IgnoreCache).Root(), opt)
	absent := func(options ...llb.SecretOption) llb.State {
		return base.Run(sh("[ -e /run/none ] || echo none"), llb.AddSecret("/run/none", append(options, llb.SecretID("none"))...), llb.IgnoreCache).Root()
	}
	prints(t, c, "none\n", absent(llb.SecretOptional), opt)
	_, err := run(t, c, absent(), opt)
	require.ErrorContains(t, err, "secret none: not found")
}

func TestAnAgentIsForwarded(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	directory, err := os.MkdirTemp("", "agent")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	path := filepath.Join(directory, "s")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(agent.NewKeyring(), connection) }()
		}
	}()
	provider, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "key", Paths: []string{path}}})
	require.NoError(t, err)
	opt := client.SolveOpt{Session: []session.Attachable{provider}}
	look := "busybox stat -c '%u:%g %a' $SSH_AUTH_SOCK"
	prints(t, c, "7:8 640\n", base.Run(sh(look), llb.AddSSHSocket(llb.SSHID("key"), llb.SSHSocketOpt("/run/agent", 7, 8, 0o640)), llb.IgnoreCache).Root(), opt)
	other := base.Run(sh("true"), llb.AddSSHSocket(llb.SSHID("other")), llb.IgnoreCache).Root()
	_, err = run(t, c, other, opt)
	require.ErrorContains(t, err, "unset ssh forward key other")
	_, err = run(t, c, other, client.SolveOpt{})
	require.ErrorContains(t, err, "forwarded from the client")
	prints(t, c, "none\n", base.Run(sh("[ -e /run/agent ] || echo none"), llb.AddSSHSocket(llb.SSHID("other"), llb.SSHOptional, llb.SSHSocketTarget("/run/agent")), llb.IgnoreCache).Root(), opt)
}

// talker is a program that sends the bytes of its second argument to the socket
// that its first one names, both in hexadecimal digits, and prints the answer.
const talker = `package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	c, err := net.Dial("unix", os.Getenv(os.Args[1]))
	if err != nil {
		panic(err)
	}
	dt, _ := hex.DecodeString(os.Args[2])
	if _, err := c.Write(dt); err != nil {
		panic(err)
	}
	size := make([]byte, 4)
	if _, err := io.ReadFull(c, size); err != nil {
		panic(err)
	}
	answer := make([]byte, binary.BigEndian.Uint32(size))
	if _, err := io.ReadFull(c, answer); err != nil {
		panic(err)
	}
	fmt.Println(hex.EncodeToString(answer))
}
`

func TestAnAgentAnswersThroughItsSocket(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(talker), 0o644))
	compile := exec.CommandContext(testContext(t), "go", "build", "-o", "talker", "main.go")
	compile.Dir, compile.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	out, err := compile.CombinedOutput()
	require.NoError(t, err, string(out))
	program, err := os.ReadFile(filepath.Join(dir, "talker"))
	require.NoError(t, err)
	image := llb.Image(r.push(unique("talker-"), "latest", newImageOf(t, map[string][]byte{"talker": program})))

	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	ring := agent.NewKeyring()
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key, Comment: "of the test"}))
	keys, err := ring.List()
	require.NoError(t, err)
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, connection) }()
		}
	}()
	provider, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "default", Paths: []string{filepath.Join(dir, "s")}}})
	require.NoError(t, err)

	// SSH_AGENTC_REQUEST_IDENTITIES, answered by SSH_AGENT_IDENTITIES_ANSWER with one key.
	step := image.Run(llb.Args([]string{"/talker", "SSH_AUTH_SOCK", "000000010b"}), llb.AddSSHSocket(), llb.IgnoreCache).Root()
	text, err := run(t, c, step, client.SolveOpt{Session: []session.Attachable{provider}})
	require.NoError(t, err, text)
	require.True(t, strings.HasPrefix(text, "0c00000001"), text)
	require.Contains(t, text, hex.EncodeToString(keys[0].Marshal()))
	require.Contains(t, text, hex.EncodeToString([]byte("of the test")))
}

// bridge calls a daemon as the frontend of a build does, in plain messages.
func bridge(t *testing.T, build string) (gwpb.LLBBridgeClient, context.Context) {
	t.Helper()
	connection, err := grpc.NewClient(env(t, "THUNKD_ADDR"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	return gwpb.NewLLBBridgeClient(connection), metadata.AppendToOutgoingContext(testContext(t), "buildkit-controlapi-buildid", build)
}

func TestAFailedStepShowsWhatItHadAndLeft(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	opt := client.SolveOpt{Ref: unique("failed-")}

	_, _, err := build(t, c, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		step := base.Run(
			sh("echo left > /left; echo out > /out/file; exit 3"),
			llb.AddMount("/in", llb.Scratch().File(llb.Mkfile("/given", 0o644, []byte("given"))), llb.Readonly),
		)
		step.AddMount("/out", llb.Scratch())
		_, err := solveState(ctx, c, step.Root(), true)
		var solve *errdefs.SolveError
		require.ErrorAs(t, err, &solve)
		mounts := solve.Op.GetExec().Mounts
		require.Len(t, solve.InputIDs, len(mounts))
		require.Len(t, solve.MountIDs, len(mounts))
		plain, ctx := bridge(t, opt.Ref)
		read := func(ref, path string) string {
			resp, err := plain.ReadFile(ctx, &gwpb.ReadFileRequest{Ref: ref, FilePath: path})
			if err != nil {
				return err.Error()
			}
			return string(resp.Data)
		}
		seen := map[string]bool{}
		for i, mount := range mounts {
			seen[mount.Dest] = true
			switch mount.Dest {
			case "/":
				require.NotEqual(t, solve.InputIDs[i], solve.MountIDs[i])
				if os.Getenv("DAEMON") != "buildkitd" {
					require.Equal(t, "left\n", read(solve.MountIDs[i], "/left"))
					require.Contains(t, read(solve.InputIDs[i], "/left"), "no such file")
					require.Contains(t, read(solve.InputIDs[i], "/etc/group"), "audio")
				}
			case "/in":
				require.NotEmpty(t, solve.InputIDs[i])
				require.Equal(t, solve.InputIDs[i], solve.MountIDs[i])
			case "/out":
				require.Empty(t, solve.InputIDs[i])
				require.NotEmpty(t, solve.MountIDs[i])
				if os.Getenv("DAEMON") != "buildkitd" {
					require.Equal(t, "out\n", read(solve.MountIDs[i], "/file"))
				}
			}
		}
		require.Equal(t, map[string]bool{"/": true, "/in": true, "/out": true}, seen)
		return gateway.NewResult(), nil
	})

	require.NoError(t, err)
}

func TestRightsAreForBuildsThatWereGrantedThem(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	base := box(t, r)
	namespace, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	for name, test := range map[string]struct {
		option   llb.RunOption
		right    entitlements.Entitlement
		script   string
		expected string
	}{
		"network.host": {
			llb.Network(llb.NetModeHost), entitlements.EntitlementNetworkHost,
			"busybox readlink /proc/self/ns/net", namespace + "\n",
		},
		"security.insecure": {
			llb.Security(llb.SecurityModeInsecure), entitlements.EntitlementSecurityInsecure,
			"busybox awk '/^(NoNewPrivs|Seccomp):/ { print $2 }' /proc/self/status; busybox mount -t tmpfs none /mnt && busybox stat -f -c %T /mnt", "0\n0\ntmpfs\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			step := func(script string) llb.State {
				return base.File(llb.Mkdir("/mnt", 0o755)).Run(sh(script), test.option, llb.IgnoreCache).Root()
			}
			_, err := run(t, c, step("true"), client.SolveOpt{})
			require.ErrorContains(t, err, name+" is not allowed")
			other := client.SolveOpt{AllowedEntitlements: []string{"device"}}
			_, err = run(t, c, step("true"), other)
			require.ErrorContains(t, err, "not allowed")
			prints(t, c, test.expected, step(test.script), client.SolveOpt{AllowedEntitlements: []string{test.right.String()}})
		})
	}
	plain := base.File(llb.Mkdir("/mnt", 0o755)).Run(sh("busybox mount -t tmpfs none /mnt 2>/dev/null || echo refused"), llb.IgnoreCache).Root()
	prints(t, c, "refused\n", plain, client.SolveOpt{AllowedEntitlements: []string{entitlements.EntitlementSecurityInsecure.String()}})
}

func TestCancellingABuildKillsItsProcess(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ctx, cancel := context.WithCancel(testContext(t))
	ch := make(chan *client.SolveStatus)
	ended := make(chan error, 1)
	def := marshal(t, box(t, r).Run(sh("echo started; busybox sleep 10000"), llb.IgnoreCache).Root())
	go func() {
		_, err := c.Solve(ctx, def, client.SolveOpt{}, ch)
		ended <- err
	}()
	for status := range ch {
		if len(status.Logs) > 0 {
			cancel()
		}
	}
	require.ErrorContains(t, <-ended, "canceled")
	cancel()
}

func TestAStepIsInTheCgroupThatItNames(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	parent := unique("conformance-")
	t.Cleanup(func() { removeCgroups(parent) })
	step := box(t, r).Run(sh("cat /proc/self/cgroup > /groups"), llb.WithCgroupParent("/"+parent)).Root()

	_, texts, err := headers(t, c, step)

	require.NoError(t, err)
	// Of version 1 a step sees where it is; its view of version 2 may begin at its own group.
	checked := 0
	for line := range strings.Lines(texts["groups"]) {
		group := strings.SplitN(strings.TrimSpace(line), ":", 3)
		require.Len(t, group, 3, line)
		switch group[1] {
		case "cpu", "cpuacct", "cpu,cpuacct", "memory", "pids", "blkio":
			require.True(t, strings.HasPrefix(group[2], "/"+parent+"/"), line)
			checked++
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Skip("NOT CHECKED: cgroups are of version 2")
	}
	require.NotZero(t, checked, texts["groups"])
}

// removeCgroups removes the groups above that of a step, which a runtime makes and nobody else removes. The step's own
// may be there a moment longer.
func removeCgroups(parent string) {
	for range 500 {
		left := false
		for _, root := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
			for _, below := range []string{"/*", ""} {
				groups, _ := filepath.Glob(root + parent + below)
				for _, group := range groups {
					// Files of a group are not to be removed, and go with it.
					if info, err := os.Stat(group); err == nil && info.IsDir() && os.Remove(group) != nil {
						left = true
					}
				}
			}
		}
		if !left {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
