package conformance

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

// shelf is a cache with three results of clearly different sizes and nothing
// else but the image and the cache mount that they were made with. By worth,
// the least first: the medium one (8 MiB), the large one (32 MiB), and then the
// empty cache mount and the image, which were used three times, and the small
// one (1 MiB), which was made first and used again at the end.
type shelf struct {
	t *testing.T
	c *client.Client
	// mark is a moment after the large one was made and before the small one was used again.
	mark time.Time
	key  string
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{t: t, c: connect(t), key: unique("shelf-")}
	base := box(t, newRegistry(t))
	put := func(name, size string) {
		script := "busybox head -c " + size + " /dev/urandom > /out/file # " + s.key + "-" + name
		step := base.Run(sh(script), llb.ReadonlyRootFS(), llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(s.key, llb.CacheMountShared)))
		_, err := run(t, s.c, step.AddMount("/out", llb.Scratch()), client.SolveOpt{})
		require.NoError(t, err)
		s.settle()
	}
	s.prune(client.PruneAll)
	require.Empty(t, s.settle(), "what the tests before left can't be pruned")
	put("small", "1m")
	put("medium", "8m")
	put("large", "32m")
	s.mark = time.Now()
	put("small", "1m")
	require.Equal(t, []string{"cache", "image", "large", "medium", "small"}, s.names(s.settle()))
	return s
}

// settle waits until nobody uses a record, and gives all that there are.
func (s *shelf) settle() []*client.UsageInfo {
	s.t.Helper()
	for ctx := testContext(s.t); ; {
		records, err := s.c.DiskUsage(ctx)
		require.NoError(s.t, err)
		if !slices.ContainsFunc(records, func(r *client.UsageInfo) bool { return r.InUse }) {
			return records
		}
	}
}

// names gives short names to records.
func (s *shelf) names(records []*client.UsageInfo) []string {
	out := []string{}
	for _, record := range records {
		_, name, made := strings.Cut(record.Description, s.key+"-")
		switch {
		case record.RecordType == client.UsageRecordTypeCacheMount || strings.HasPrefix(record.Description, "cached mount"):
			out = append(out, "cache")
		case made:
			out = append(out, name)
		case strings.HasPrefix(record.Description, "pulled from"):
			out = append(out, "image")
		default:
			out = append(out, record.Description)
		}
	}
	slices.Sort(out)
	return out
}

func (s *shelf) prune(opts ...client.PruneOption) []*client.UsageInfo {
	s.t.Helper()
	ch := make(chan client.UsageInfo)
	done := make(chan []*client.UsageInfo, 1)
	go func() {
		var gone []*client.UsageInfo
		for record := range ch {
			gone = append(gone, &record)
		}
		done <- gone
	}()
	err := s.c.Prune(testContext(s.t), ch, opts...)
	close(ch)
	require.NoError(s.t, err)
	return <-done
}

func TestPruneTakesWhatIsWorthTheLeastUntilTheRestFits(t *testing.T) {
	// The image is 2 to 6 MiB large, by how a daemon counts it.
	const enough = int64(1) << 60
	for name, test := range map[string]struct {
		duration            time.Duration
		reserved, max, free int64
		gone                []string
	}{
		"no limit":                     {0, 0, 0, 0, []string{"cache", "image", "large", "medium", "small"}},
		"all fits":                     {0, 0, 100 * mib, 0, []string{}},
		"all but one fits":             {0, 0, 42 * mib, 0, []string{"medium"}},
		"all but two fit":              {0, 0, 20 * mib, 0, []string{"large", "medium"}},
		"reserved alone":               {0, 42 * mib, 0, 0, []string{"medium"}},
		"more reserved than allowed":   {0, 42 * mib, 1, 0, []string{"medium"}},
		"less reserved than allowed":   {0, 1, 42 * mib, 0, []string{"medium"}},
		"a disk without room":          {0, 0, 0, enough, []string{"cache", "image", "large", "medium", "small"}},
		"a disk without room, limited": {0, 0, 42 * mib, enough, []string{"cache", "image", "large", "medium", "small"}},
		"a disk without room, but":     {0, 20 * mib, 0, enough, []string{"large", "medium"}},
		"a disk with room, limited":    {0, 0, 42 * mib, 1, []string{"medium"}},
		"a disk with room, reserved":   {0, 100 * mib, 0, 1, []string{}},
		"used within this time stays":  {time.Hour, 0, 1, 0, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			gone := s.names(s.prune(client.WithKeepOpt(test.duration, test.reserved, test.max, test.free)))
			require.Equal(t, test.gone, gone)
			require.Equal(t, 5-len(gone), len(s.settle()), "what went was told, and nothing else went")
		})
	}
}

func TestPruneTakesNothingFromADiskWithRoom(t *testing.T) {
	thunkOnly(t, "it takes one record")
	s := newShelf(t)
	require.Empty(t, s.names(s.prune(client.WithKeepOpt(0, 0, 0, 1))))
}

func TestPruneLeavesWhatWasUsedLately(t *testing.T) {
	s := newShelf(t)
	gone := s.prune(client.WithKeepOpt(time.Since(s.mark), 0, 0, 0))
	require.Equal(t, []string{"cache", "image", "large", "medium"}, s.names(gone))
	require.Equal(t, []string{"small"}, s.names(s.settle()), "a step that is found uses no image")
}

func TestPruneTakesWhatAFilterSelects(t *testing.T) {
	s := newShelf(t)
	filter := func(filters ...string) client.PruneOption { return client.WithFilter(filters) }
	for _, test := range []struct {
		option client.PruneOption
		gone   []string
	}{
		{filter("type==source.local"), []string{}},
		{filter("type==exec.cachemount"), []string{"cache"}},
		{filter("type==regular,description~=" + s.key + "-large"), []string{"large"}},
		{filter("description~="+s.key+"-none", "description~="+s.key+"-small"), []string{"small"}},
		{filter("type!=regular"), []string{}},
		{filter("description!~=" + s.key), nil},
		{filter("mutable==true"), []string{}},
		{filter("type==regular"), []string{"image", "medium"}},
	} {
		if test.gone == nil {
			require.Error(t, s.c.Prune(testContext(t), nil, test.option))
			continue
		}
		require.Equal(t, test.gone, s.names(s.prune(test.option)), test.option)
	}
	require.Empty(t, s.settle())
}

func TestPruneByALimitAndAFilterCountsAllAndTakesTheSelected(t *testing.T) {
	s := newShelf(t)
	filter := client.WithFilter([]string{"description~=" + s.key + "-small", "description~=" + s.key + "-large"})
	// The medium one and the image are more than this.
	gone := s.prune(filter, client.WithKeepOpt(0, 0, 2*mib, 0))
	require.Subset(t, s.names(gone), []string{"large", "small"})
	require.Subset(t, s.names(s.settle()), []string{"image", "medium"})
	gone = s.prune(client.WithFilter([]string{"type==regular"}), client.WithKeepOpt(0, 0, 9*mib, 0))
	require.Equal(t, []string{"medium"}, s.names(gone))
}
