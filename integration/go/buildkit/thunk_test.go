package conformance

import (
	"regexp"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

func TestALayerThatWasDownloadedIsStillMounted(t *testing.T) {
	thunkOnly(t, "it forgets where a layer came from once it has it")
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, nil)
	img := newImage(t, 3, "amd64")
	name, target := unique("mounted-"), unique("mounted-target-")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	_, _, err := solve(t, c, def, toArchive())
	require.NoError(t, err)
	require.Equal(t, 3, p.layerGets(img))

	_, _, err = solve(t, c, def, exports(push(p.host+"/"+target+":v1")))

	require.NoError(t, err)
	require.Equal(t, 3, p.layerGets(img))
	require.LessOrEqual(t, p.count(regexp.MustCompile(`^PUT /v2/.*/blobs/uploads/`)), 1, "only the config is new")
	r.holds(target, img.layerDigests()...)
}

func TestALazyImageIsAccountedForBeforeItIsDownloaded(t *testing.T) {
	thunkOnly(t, "records of images that were never downloaded go with the build")
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, nil)
	img := newImage(t, 2, "amd64")
	name := unique("accounted-")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	_, _, err := solve(t, c, def, exports(push(p.host+"/"+name+":again")))
	require.NoError(t, err)

	records, err := c.DiskUsage(testContext(t))

	require.NoError(t, err)
	require.Zero(t, p.layerGets(img))
	found := 0
	for _, record := range records {
		if contains(record.Description, name) {
			found++
		}
	}
	require.NotZero(t, found)
}
