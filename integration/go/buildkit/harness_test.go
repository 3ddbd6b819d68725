// Package conformance holds a daemon to BuildKit's API with BuildKit's own Go
// client. THUNKD_ADDR is the daemon, TEST_REGISTRY the host:port of a registry
// on plain HTTP. DAEMON=buildkitd says that the daemon is BuildKit's, the
// referee that shows the tests to be right.
package conformance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	// The encoding of buildctl and docker buildx, which reads some messages in another way than Go's own.
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
	"github.com/stretchr/testify/require"
)

// limit is for one test: nothing here takes seconds by itself.
const limit = 60 * time.Second

func env(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Skipf("%s is not set", name)
	}
	return value
}

// thunkOnly marks what BuildKit gets wrong.
func thunkOnly(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("DAEMON") == "buildkitd" {
		t.Skip("not for buildkitd: " + reason)
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(testContext(t), env(t, "THUNKD_ADDR"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func unique(prefix string) string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}

func marshal(t *testing.T, state llb.State) *llb.Definition {
	t.Helper()
	def, err := state.Marshal(testContext(t), llb.LinuxAmd64)
	require.NoError(t, err)
	return def
}

// push asks for an image under a name, pushed.
func push(name string, attrs ...string) client.ExportEntry {
	entry := client.ExportEntry{
		Type:  client.ExporterImage,
		Attrs: map[string]string{"name": name, "push": "true"},
	}
	for i := 0; i < len(attrs); i += 2 {
		entry.Attrs[attrs[i]] = attrs[i+1]
	}
	return entry
}

func exports(entries ...client.ExportEntry) client.SolveOpt {
	return client.SolveOpt{Exports: entries}
}

// watch collects what a build says until the client closes the channel.
type watch struct {
	ch   chan *client.SolveStatus
	done chan struct{}

	mu       sync.Mutex
	vertexes []*client.Vertex
	statuses []*client.VertexStatus
	warnings []*client.VertexWarning
	seen     []chan struct{}
	match    []func(*client.SolveStatus) bool
}

func newWatch() *watch {
	w := &watch{ch: make(chan *client.SolveStatus), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for status := range w.ch {
			w.mu.Lock()
			w.vertexes = append(w.vertexes, status.Vertexes...)
			w.statuses = append(w.statuses, status.Statuses...)
			w.warnings = append(w.warnings, status.Warnings...)
			for i, match := range w.match {
				if match != nil && match(status) {
					close(w.seen[i])
					w.match[i] = nil
				}
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// closed waits for the end of the progress.
func (w *watch) closed(t *testing.T) {
	t.Helper()
	select {
	case <-w.done:
	case <-time.After(limit):
		t.Fatal("the progress of the build never ended")
	}
}

// last gives each vertex as it was reported last.
func (w *watch) last() map[string]*client.Vertex {
	out := map[string]*client.Vertex{}
	for _, v := range w.vertexes {
		out[v.Digest.String()] = v
	}
	return out
}

// solve runs a definition to its end and gives what was said meanwhile.
func solve(t *testing.T, c *client.Client, def *llb.Definition, opt client.SolveOpt) (map[string]string, *watch, error) {
	t.Helper()
	w := newWatch()
	resp, err := c.Solve(testContext(t), def, opt, w.ch)
	w.closed(t)
	if err != nil {
		return nil, w, err
	}
	return resp.ExporterResponse, w, nil
}

// within fails if work takes longer than it may.
func within(t *testing.T, atMost time.Duration, what string, work func()) {
	t.Helper()
	start := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); work() }()
	select {
	case <-done:
		if took := time.Since(start); took > atMost {
			t.Fatalf("%s took %s, at most %s are allowed", what, took, atMost)
		}
	case <-time.After(limit):
		t.Fatalf("%s did not end", what)
	}
}

var imageDigest = exptypes.ExporterImageDigestKey

func describe(format string, args ...any) string { return fmt.Sprintf(format, args...) }
