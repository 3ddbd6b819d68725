package conformance

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// record builds an image under a name of its own and gives that name.
func record(t *testing.T, c *client.Client, r registry, opt client.SolveOpt) string {
	t.Helper()
	ref := r.push(unique("history-"), "latest", newImage(t, 1, "amd64"))
	opt.Ref = unique("ref-")
	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), opt)
	require.NoError(t, err)
	return opt.Ref
}

// list gives the records that are there now.
func list(t *testing.T, c *client.Client, req *controlapi.BuildHistoryRequest) []*controlapi.BuildHistoryEvent {
	t.Helper()
	req.EarlyExit = true
	stream, err := c.ControlClient().ListenBuildHistory(testContext(t), req)
	require.NoError(t, err)
	var events []*controlapi.BuildHistoryEvent
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return events
		}
		require.NoError(t, err)
		events = append(events, event)
	}
}

// stored waits for the record of an ended build: it is written after the answer.
func stored(t *testing.T, c *client.Client, ref string) *controlapi.BuildHistoryRecord {
	t.Helper()
	var found *controlapi.BuildHistoryRecord
	require.Eventually(t, func() bool {
		for _, event := range list(t, c, &controlapi.BuildHistoryRequest{Ref: ref}) {
			if event.Type == controlapi.BuildHistoryEventType_COMPLETE {
				found = event.Record
			}
		}
		return found != nil
	}, 10*time.Second, 50*time.Millisecond, "the build was not recorded")
	return found
}

func TestABuildIsRecorded(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("recorded-")
	target := r.host + "/" + name + ":v1"

	ref := record(t, c, r, exports(push(target)))

	got := stored(t, c, ref)
	require.Equal(t, ref, got.Ref)
	require.Nil(t, got.Error)
	require.NotNil(t, got.CreatedAt)
	require.NotNil(t, got.CompletedAt)
	require.False(t, got.CompletedAt.AsTime().Before(got.CreatedAt.AsTime()))
	require.Len(t, got.Exporters, 1)
	require.Equal(t, "image", got.Exporters[0].Type)
	require.Equal(t, target, got.Exporters[0].Attrs["name"])
	require.NotNil(t, got.Result)
	_, pushed := r.raw(name, "v1")
	require.Equal(t, digest.FromBytes(pushed).String(), got.Result.Results[0].Digest)
	require.Positive(t, got.NumTotalSteps)
	require.Equal(t, got.NumTotalSteps, got.NumCompletedSteps)
}

func TestAFailedBuildIsRecordedWithItsError(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	opt := client.SolveOpt{Ref: unique("ref-")}
	_, _, err := solve(t, c, marshal(t, llb.Image(r.host+"/"+unique("missing-")+":latest")), opt)
	require.Error(t, err)

	got := stored(t, c, opt.Ref)

	require.NotNil(t, got.Error)
	require.NotEmpty(t, got.Error.Message)
	found := false
	for _, event := range list(t, c, &controlapi.BuildHistoryRequest{Filter: []string{"status==error"}}) {
		require.NotNil(t, event.Record.Error)
		found = found || event.Record.Ref == opt.Ref
	}
	require.True(t, found)
}

func TestAnInternalBuildLeavesNoRecord(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	internal := record(t, c, r, client.SolveOpt{Internal: true})
	other := record(t, c, r, client.SolveOpt{})
	stored(t, c, other)

	for _, event := range list(t, c, &controlapi.BuildHistoryRequest{}) {
		require.NotEqual(t, internal, event.Record.Ref)
	}
}

func TestTheNewestRecordsAreListedUpToTheLimit(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	for range 2 {
		stored(t, c, record(t, c, r, client.SolveOpt{}))
	}
	newest := record(t, c, r, client.SolveOpt{})
	stored(t, c, newest)

	events := list(t, c, &controlapi.BuildHistoryRequest{Limit: 1})

	require.Len(t, events, 1)
	require.Equal(t, newest, events[0].Record.Ref)
}

func TestARecordIsPinnedAndDeleted(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := record(t, c, r, client.SolveOpt{})
	before := stored(t, c, ref)
	require.False(t, before.Pinned)

	_, err := c.ControlClient().UpdateBuildHistory(testContext(t), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Pinned: true})
	require.NoError(t, err)
	pinned := stored(t, c, ref)
	require.True(t, pinned.Pinned)
	require.Greater(t, pinned.Generation, before.Generation)

	_, err = c.ControlClient().UpdateBuildHistory(testContext(t), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
	require.NoError(t, err)
	for _, event := range list(t, c, &controlapi.BuildHistoryRequest{}) {
		require.NotEqual(t, ref, event.Record.Ref)
	}
	stream, err := c.ControlClient().ListenBuildHistory(testContext(t), &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.ErrorContains(t, err, ref)
}

func TestAListenerSeesABuildComeAndGo(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{})
	require.NoError(t, err)
	// The header is there when the daemon listens.
	_, err = stream.Header()
	require.NoError(t, err)
	events := make(chan *controlapi.BuildHistoryEvent, 1024)
	ended := make(chan error, 1)
	go func() {
		for {
			event, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			events <- event
		}
	}()

	ref := record(t, c, r, client.SolveOpt{})
	await := func(kind controlapi.BuildHistoryEventType) {
		t.Helper()
		for {
			select {
			case event := <-events:
				if event.Record.Ref == ref && event.Type == kind {
					return
				}
			case <-time.After(limit):
				t.Fatalf("no event %s", kind)
			}
		}
	}
	await(controlapi.BuildHistoryEventType_STARTED)
	await(controlapi.BuildHistoryEventType_COMPLETE)
	_, err = c.ControlClient().UpdateBuildHistory(testContext(t), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
	require.NoError(t, err)
	await(controlapi.BuildHistoryEventType_DELETED)

	cancel()
	require.Equal(t, codes.Canceled, status.Code(<-ended))
}
