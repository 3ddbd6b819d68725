package conformance

import (
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

func TestAWorkerNamesItsPlatformAndLabels(t *testing.T) {
	c := connect(t)

	workers, err := c.ListWorkers(testContext(t))

	require.NoError(t, err)
	require.Len(t, workers, 1)
	worker := workers[0]
	require.NotEmpty(t, worker.ID)
	require.NotEmpty(t, worker.Platforms)
	require.Equal(t, "linux", worker.Platforms[0].OS)
	require.NotEmpty(t, worker.Platforms[0].Architecture)
	require.Equal(t, "github.com/moby/buildkit", worker.BuildkitVersion.Package)
	for _, name := range []string{"executor", "snapshotter", "hostname", "network", "oci.process-mode", "selinux.enabled"} {
		require.NotEmpty(t, worker.Labels["org.mobyproject.buildkit.worker."+name], name)
	}
}

func TestWorkersAreFiltered(t *testing.T) {
	c := connect(t)
	workers, err := c.ListWorkers(testContext(t))
	require.NoError(t, err)

	same, err := c.ListWorkers(testContext(t), client.WithFilter([]string{"id==" + workers[0].ID}))
	require.NoError(t, err)
	require.Len(t, same, 1)

	labelled, err := c.ListWorkers(testContext(t), client.WithFilter([]string{`labels."org.mobyproject.buildkit.worker.hostname"`}))
	require.NoError(t, err)
	require.Len(t, labelled, 1)

	other, err := c.ListWorkers(testContext(t), client.WithFilter([]string{"id==nobody"}))
	require.NoError(t, err)
	require.Empty(t, other)

	_, err = c.ListWorkers(testContext(t), client.WithFilter([]string{"id=="}))
	require.Error(t, err)
}

func TestInfoNamesTheVersion(t *testing.T) {
	c := connect(t)

	info, err := c.Info(testContext(t))

	require.NoError(t, err)
	require.Equal(t, "github.com/moby/buildkit", info.BuildkitVersion.Package)
	require.NotEmpty(t, info.BuildkitVersion.Version)
}

func TestDiskUsageHasTheLayersOfAnImage(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("du-")
	ref := r.push(name, "latest", newImage(t, 3, "amd64"))
	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, Output: discard,
	}))
	require.NoError(t, err)

	records, err := c.DiskUsage(testContext(t))
	require.NoError(t, err)
	byID := map[string]*client.UsageInfo{}
	var mine []*client.UsageInfo
	for _, record := range records {
		byID[record.ID] = record
		require.False(t, record.CreatedAt.IsZero())
		if contains(record.Description, name) {
			mine = append(mine, record)
		}
	}
	require.NotEmpty(t, mine, "no record is described by the image's name")
	for _, record := range mine {
		require.False(t, record.Mutable)
		require.Equal(t, client.UsageRecordTypeRegular, record.RecordType)
		for _, parent := range record.Parents {
			require.Contains(t, byID, parent)
		}
	}

	one, err := c.DiskUsage(testContext(t), client.WithFilter([]string{"id==" + mine[0].ID}))
	require.NoError(t, err)
	require.Len(t, one, 1)
	none, err := c.DiskUsage(testContext(t), client.WithFilter([]string{"mutable,immutable"}))
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestPruneStreamsWhatItRemoves(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("prune-")
	ref := r.push(name, "latest", newImage(t, 2, "amd64"))
	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, Output: discard,
	}))
	require.NoError(t, err)

	ch := make(chan client.UsageInfo)
	var gone []client.UsageInfo
	done := make(chan struct{})
	go func() {
		defer close(done)
		for record := range ch {
			gone = append(gone, record)
		}
	}()
	err = c.Prune(testContext(t), ch, client.PruneAll)
	close(ch)
	<-done

	require.NoError(t, err)
	found := false
	for _, record := range gone {
		found = found || contains(record.Description, name)
	}
	require.True(t, found, "the image's layers were not pruned")
	left, err := c.DiskUsage(testContext(t))
	require.NoError(t, err)
	for _, record := range left {
		require.NotContains(t, record.Description, name)
	}

	// What was pruned can be had again.
	_, _, err = solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{
		Type: client.ExporterOCI, Output: discard,
	}))
	require.NoError(t, err)
}
