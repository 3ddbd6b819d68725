package conformance

import (
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func TestAnImageIsPushedWithItsOwnLayersAndAllResponseKeys(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	name, target := unique("base-"), unique("target-")
	ref := r.push(name, "latest", img)

	resp, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+target+":v1")))

	require.NoError(t, err)
	require.Equal(t, r.host+"/"+target+":v1", resp["image.name"])
	mediaType, dt := r.raw(target, "v1")
	require.Equal(t, ocispecs.MediaTypeImageManifest, mediaType)
	require.Equal(t, digest.FromBytes(dt).String(), resp[imageDigest])
	manifest := r.manifest(target, "v1")
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
	require.Equal(t, manifest.Config.Digest.String(), resp["containerimage.config.digest"])
	r.holds(target, append(digests(manifest.Layers), manifest.Config.Digest)...)

	var desc ocispecs.Descriptor
	text, err := base64.StdEncoding.DecodeString(resp["containerimage.descriptor"])
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &desc))
	require.Equal(t, resp[imageDigest], desc.Digest.String())
	require.Equal(t, int64(len(dt)), desc.Size)
	require.Equal(t, mediaType, desc.MediaType)

	config := r.imageConfig(target, manifest.Config.Digest)
	require.Equal(t, "linux", config.OS)
	require.Equal(t, "amd64", config.Architecture)
	require.Len(t, config.RootFS.DiffIDs, 3)
	require.NotEmpty(t, config.History)
}

func TestAPushDownloadsNoLayerThatTheRegistryHas(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, nil)
	img := newImage(t, 4, "amd64")
	name, target := unique("lazy-"), unique("lazy-target-")
	r.push(name, "latest", img)
	ref := p.host + "/" + name + ":latest"

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(p.host+"/"+name+":again")))
	require.NoError(t, err)
	require.Zero(t, p.layerGets(img), "the same repository")
	require.LessOrEqual(t, p.count(blobUpload), 1, "only the config is new")

	_, _, err = solve(t, c, marshal(t, llb.Image(ref)), exports(push(p.host+"/"+target+":v1")))
	require.NoError(t, err)
	require.Zero(t, p.layerGets(img), "another repository of the host")
	r.holds(target, img.layerDigests()...)
}

func TestTwoNamesArePushedBoth(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("names-")
	ref := r.push(name, "latest", newImage(t, 1, "amd64"))
	one, two := unique("one-"), unique("two-")

	resp, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+one+":a,"+r.host+"/"+two+":b")))

	require.NoError(t, err)
	require.Equal(t, r.host+"/"+one+":a,"+r.host+"/"+two+":b", resp["image.name"])
	_, first := r.raw(one, "a")
	_, second := r.raw(two, "b")
	require.Equal(t, resp[imageDigest], digest.FromBytes(first).String())
	require.Equal(t, first, second)
}

func TestTwoExportersRunInOneBuild(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("exporters-"), "latest", newImage(t, 1, "amd64"))
	one := unique("one-")
	archive := newArchive()

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(
		push(r.host+"/"+one+":a"),
		client.ExportEntry{Type: client.ExporterOCI, Output: archive.open},
	))

	require.NoError(t, err)
	r.manifest(one, "a")
	require.Len(t, archive.index(t).Manifests, 1)
}

func TestAPushByDigestSetsNoTag(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("digest-"), "latest", newImage(t, 1, "amd64"))
	target := unique("by-digest-")

	resp, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+target, "push-by-digest", "true", "name-canonical", "true")))

	require.NoError(t, err)
	r.manifest(target, resp[imageDigest])
	_, tags := r.do("GET", "/v2/"+target+"/tags/list", nil, nil)
	require.NotContains(t, string(tags), "latest")
	require.Equal(t, r.host+"/"+target, resp["image.name"])
}

func TestAnnotationsAndMediaTypesFollowTheAttributes(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 2, "amd64")
	ref := r.push(unique("attrs-"), "latest", img)
	target := unique("attrs-target-")

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+target+":oci", "annotation.org.example.a", "b")))
	require.NoError(t, err)
	manifest := r.manifest(target, "oci")
	require.Equal(t, "b", manifest.Annotations["org.example.a"])
	require.Equal(t, ocispecs.MediaTypeImageLayerGzip, manifest.Layers[0].MediaType)

	_, _, err = solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+target+":docker", "oci-mediatypes", "false")))
	require.NoError(t, err)
	mediaType, _ := r.raw(target, "docker")
	require.Equal(t, "application/vnd.docker.distribution.manifest.v2+json", mediaType)
	manifest = r.manifest(target, "docker")
	require.Equal(t, "application/vnd.docker.container.image.v1+json", manifest.Config.MediaType)
	require.Equal(t, "application/vnd.docker.image.rootfs.diff.tar.gzip", manifest.Layers[0].MediaType)
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
}

func TestTheImageOfThePlatformIsTaken(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	amd64, arm64 := newImage(t, 1, "amd64"), newImage(t, 2, "arm64")
	ref := r.push(unique("index-"), "latest", newIndex(t, map[string]image{"amd64": amd64, "arm64": arm64}))
	target := unique("platform-")

	_, _, err := solve(t, c, marshal(t, llb.Image(ref, llb.LinuxArm64)), exports(push(r.host+"/"+target+":arm64")))
	require.NoError(t, err)
	require.Equal(t, arm64.layerDigests(), digests(r.manifest(target, "arm64").Layers))

	_, _, err = solve(t, c, marshal(t, llb.Image(ref, llb.LinuxAmd64)), exports(push(r.host+"/"+target+":amd64")))
	require.NoError(t, err)
	require.Equal(t, amd64.layerDigests(), digests(r.manifest(target, "amd64").Layers))

	_, _, err = solve(t, c, marshal(t, llb.Image(ref, llb.LinuxS390x)), exports(push(r.host+"/"+target+":s390x")))
	require.ErrorContains(t, err, "platform")
}

func TestAPinnedDigestIsTakenWhateverTheTagSays(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name, target := unique("pin-"), unique("pin-target-")
	first, second := newImage(t, 1, "amd64"), newImage(t, 1, "amd64")
	r.push(name, "latest", first)
	ref := r.push(name, "latest", second)

	_, _, err := solve(t, c, marshal(t, llb.Image(ref+"@"+first.root.Digest.String())), exports(push(r.host+"/"+target+":first")))
	require.NoError(t, err)
	require.Equal(t, first.layerDigests(), digests(r.manifest(target, "first").Layers))

	_, _, err = solve(t, c, marshal(t, llb.Image(ref+"@"+digest.FromString("missing").String())), exports(push(r.host+"/"+target+":missing")))
	require.ErrorContains(t, err, "not found")
}

func TestAChecksumHoldsTheTag(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 1, "amd64")
	ref, target := r.push(unique("checksum-"), "latest", img), unique("checksum-target-")

	_, _, err := solve(t, c, marshal(t, llb.Image(ref, llb.WithImageChecksum(img.root.Digest))), exports(push(r.host+"/"+target+":right")))
	require.NoError(t, err)

	_, _, err = solve(t, c, marshal(t, llb.Image(ref, llb.WithImageChecksum(digest.FromString("wrong")))), exports(push(r.host+"/"+target+":wrong")))
	require.Error(t, err)
}

func TestALayerLimitCutsTheImage(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 4, "amd64")
	ref, target := r.push(unique("limit-"), "latest", img), unique("limit-target-")

	_, _, err := solve(t, c, marshal(t, llb.Image(ref, llb.WithLayerLimit(2))), exports(push(r.host+"/"+target+":two")))

	require.NoError(t, err)
	require.Equal(t, img.layerDigests()[:2], digests(r.manifest(target, "two").Layers))
}

func TestResolveModePullSeesANewTag(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name, target := unique("mode-"), unique("mode-target-")
	ref := r.push(name, "latest", newImage(t, 1, "amd64"))
	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(push(r.host+"/"+target+":first")))
	require.NoError(t, err)
	second := newImage(t, 1, "amd64")
	r.push(name, "latest", second)

	_, _, err = solve(t, c, marshal(t, llb.Image(ref, llb.ResolveModeForcePull)), exports(push(r.host+"/"+target+":second")))

	require.NoError(t, err)
	require.Equal(t, second.layerDigests(), digests(r.manifest(target, "second").Layers))
}

func TestAMergeOfImagesStaysLazy(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, nil)
	one, two := newImage(t, 2, "amd64"), newImage(t, 1, "amd64")
	name, target := unique("merge-"), unique("merge-target-")
	r.push(name, "one", one)
	r.push(name, "two", two)

	merged := llb.Merge([]llb.State{llb.Image(p.host + "/" + name + ":one"), llb.Image(p.host + "/" + name + ":two")})
	_, _, err := solve(t, c, marshal(t, merged), exports(push(p.host+"/"+target+":merged")))

	require.NoError(t, err)
	require.Equal(t, append(one.layerDigests(), two.layerDigests()...), digests(r.manifest(target, "merged").Layers))
	require.Zero(t, p.layerGets(one)+p.layerGets(two))
}

func TestAnEmptyResultWithoutExportersIsNoError(t *testing.T) {
	c := connect(t)

	_, _, err := solve(t, c, marshal(t, llb.Scratch()), client.SolveOpt{})

	require.NoError(t, err)
}

func TestAnUnknownExporterIsRefused(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("unknown-"), "latest", newImage(t, 1, "amd64"))

	_, _, err := solve(t, c, marshal(t, llb.Image(ref)), exports(client.ExportEntry{Type: "nonsense"}))

	require.ErrorContains(t, err, "nonsense")
}
