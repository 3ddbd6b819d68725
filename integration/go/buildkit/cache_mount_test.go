package conformance

import (
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

// step is a build of one step whose words can be waited for.
type step struct {
	t       *testing.T
	mu      sync.Mutex
	text    strings.Builder
	started bool
	changed chan struct{}
	ended   chan struct{}
	err     error
}

// startStep builds a state whose last vertex is the step, named by name.
func startStep(t *testing.T, c *client.Client, name string, state llb.State) *step {
	t.Helper()
	s := &step{t: t, changed: make(chan struct{}), ended: make(chan struct{})}
	def := marshal(t, state)
	ch := make(chan *client.SolveStatus)
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		for status := range ch {
			s.mu.Lock()
			for _, vertex := range status.Vertexes {
				s.started = s.started || vertex.Started != nil && strings.Contains(vertex.Name, name)
			}
			for _, log := range status.Logs {
				s.text.Write(log.Data)
			}
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
		}
	}()
	go func() {
		defer close(s.ended)
		_, s.err = c.Solve(testContext(t), def, client.SolveOpt{}, ch)
		<-listened
	}()
	return s
}

func (s *step) until(what string, holds func() bool) {
	s.t.Helper()
	for ctx := testContext(s.t); ; {
		s.mu.Lock()
		done, changed := holds(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-s.ended:
			require.FailNow(s.t, "the step ended before "+what, "%v\n%s", s.err, s.text.String())
		case <-ctx.Done():
			require.FailNow(s.t, "waited in vain for "+what, s.text.String())
		}
	}
}

func (s *step) untilSaid(line string) {
	s.t.Helper()
	s.until("it said "+line, func() bool { return strings.Contains(s.text.String(), line+"\n") })
}

func (s *step) untilStarted() {
	s.t.Helper()
	s.until("it started", func() bool { return s.started })
}

// said waits for the end, and gives all that it said.
func (s *step) said() string {
	s.t.Helper()
	<-s.ended
	require.NoError(s.t, s.err, s.text.String())
	return s.text.String()
}

// two runs steps of different builds with one cache mount at /cache, and
// another one at /pipes, through which they and the test speak.
type two struct {
	t       *testing.T
	c       *client.Client
	base    llb.State
	id      string
	sharing llb.CacheMountSharingMode
}

func newTwo(t *testing.T, sharing llb.CacheMountSharingMode) two {
	t.Helper()
	return two{t: t, c: connect(t), base: box(t, newRegistry(t)), id: unique("two-"), sharing: sharing}
}

func (w two) start(script string) *step {
	w.t.Helper()
	once := unique("once-")
	state := w.base.Run(
		sh(script+" # "+once),
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(w.id, w.sharing)),
		llb.AddMount("/pipes", llb.Scratch(), llb.AsPersistentCacheDir(w.id+"-pipes", llb.CacheMountShared)),
	).Root()
	return startStep(w.t, w.c, once, state)
}

// other runs a step that has nothing of the cache mount at /cache.
func (w two) other(script string) string {
	w.t.Helper()
	once := unique("once-")
	state := w.base.Run(
		sh(script+" # "+once),
		llb.AddMount("/pipes", llb.Scratch(), llb.AsPersistentCacheDir(w.id+"-pipes", llb.CacheMountShared)),
	).Root()
	return startStep(w.t, w.c, once, state).said()
}

const waitForTheOther = "busybox mkfifo /pipes/go; echo up; busybox cat /pipes/go; "

func TestASharedCacheMountIsOneForTwoBuildsAtOnce(t *testing.T) {
	w := newTwo(t, llb.CacheMountShared)
	first := w.start("busybox mkfifo /cache/to-first /cache/to-second; echo up; busybox cat /cache/to-first; echo by the first > /cache/to-second; busybox cat /cache/file")
	first.untilSaid("up")
	second := w.start("echo written > /cache/file; echo by the second > /cache/to-first; busybox cat /cache/to-second")
	require.Equal(t, "by the first\n", second.said())
	require.Equal(t, "up\nby the second\nwritten\n", first.said())
}

func TestAPrivateCacheMountIsAnotherOneForASecondBuildAtOnce(t *testing.T) {
	w := newTwo(t, llb.CacheMountPrivate)
	first := w.start("echo > /cache/of-first; " + waitForTheOther + "busybox ls /cache")
	first.untilSaid("up")
	second := w.start("busybox ls /cache; echo > /cache/of-second; echo go > /pipes/go")
	require.Equal(t, "", second.said(), "the second one begins with nothing")
	require.Equal(t, "up\ngo\nof-first\n", first.said())

	// Each is kept for whoever comes next: both are taken at once.
	third := w.start("busybox rm /pipes/go; " + waitForTheOther + "busybox ls /cache")
	third.untilSaid("up")
	fourth := w.start("busybox ls /cache; echo go > /pipes/go")
	found := []string{fourth.said(), strings.TrimPrefix(third.said(), "up\ngo\n")}
	require.ElementsMatch(t, []string{"of-first\n", "of-second\n"}, found)
}

func TestALockedCacheMountIsWaitedForByASecondBuild(t *testing.T) {
	w := newTwo(t, llb.CacheMountLocked)
	first := w.start(waitForTheOther + "echo done > /cache/file; echo done > /pipes/done")
	first.untilSaid("up")
	second := w.start("busybox cat /pipes/done /cache/file; echo second > /cache/file")
	second.untilStarted()
	// Steps that want no such mount overtake it, a whole one after it has started.
	require.Equal(t, "no\n", w.other("[ -e /pipes/done ] || echo no"))
	require.Equal(t, "", w.other("echo go > /pipes/go"))
	require.Equal(t, "done\ndone\n", second.said())
	require.Equal(t, "up\ngo\n", first.said())
	require.Equal(t, "second\n", w.start("busybox cat /cache/file").said())
}

func TestABuildThatWaitsForALockedCacheMountCanBeCancelled(t *testing.T) {
	w := newTwo(t, llb.CacheMountLocked)
	first := w.start(waitForTheOther)
	first.untilSaid("up")
	state := w.base.Run(sh("true # "+w.id), llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(w.id, w.sharing))).Root()
	job := start(t, w.c, marshal(t, state), client.SolveOpt{})
	require.Equal(t, "", w.other("true"))
	job.cancel()
	require.Error(t, job.wait(t))
	require.Equal(t, "", w.other("echo go > /pipes/go"))
	require.Equal(t, "up\ngo\n", first.said())
}
