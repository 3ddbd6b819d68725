package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/session/exporter/exporterprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// build runs a gateway build to its end.
func build(t *testing.T, c *client.Client, opt client.SolveOpt, run gateway.BuildFunc) (map[string]string, *watch, error) {
	t.Helper()
	w := newWatch()
	resp, err := c.Build(testContext(t), opt, "", run, w.ch)
	w.closed(t)
	if err != nil {
		return nil, w, err
	}
	return resp.ExporterResponse, w, nil
}

func solveState(ctx context.Context, c gateway.Client, state llb.State, evaluate bool) (*gateway.Result, error) {
	def, err := state.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, err
	}
	return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: evaluate})
}

func TestAGatewayBuildReturnsItsResult(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 2, "amd64")
	ref, target := r.push(unique("gateway-"), "latest", img), unique("gateway-target-")

	resp, w, err := build(t, c, exports(push(r.host+"/"+target+":v1")), func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		_, dgst, config, err := c.ResolveImageConfig(ctx, ref, sourceresolver.Opt{
			ImageOpt: &sourceresolver.ResolveImageOpt{Platform: &ocispecs.Platform{OS: "linux", Architecture: "amd64"}},
		})
		if err != nil {
			return nil, err
		}
		if dgst != img.root.Digest {
			return nil, errors.New("another digest: " + dgst.String())
		}
		var image ocispecs.Image
		if err := json.Unmarshal(config, &image); err != nil {
			return nil, err
		}
		if image.Config.Labels["made"] != "for a test" {
			return nil, errors.New("another config: " + string(config))
		}
		image.Config.Labels["changed"] = "by the frontend"
		config, err = json.Marshal(image)
		if err != nil {
			return nil, err
		}
		res, err := solveState(ctx, c, llb.Image(ref), false)
		if err != nil {
			return nil, err
		}
		res.AddMeta(exptypes.ExporterImageConfigKey, config)
		return res, nil
	})

	require.NoError(t, err)
	manifest := r.manifest(target, "v1")
	require.Equal(t, img.layerDigests(), digests(manifest.Layers))
	config := r.imageConfig(target, manifest.Config.Digest)
	require.Equal(t, map[string]string{"made": "for a test", "changed": "by the frontend"}, config.Config.Labels)
	require.Len(t, config.History, 2)
	require.Len(t, config.RootFS.DiffIDs, 2)
	require.Equal(t, manifest.Config.Digest.String(), resp["containerimage.config.digest"])
	require.NotEmpty(t, w.vertexes)
}

func TestSourceMetadataPinsTheImage(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 1, "amd64")
	ref := r.push(unique("meta-"), "latest", img)

	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		meta, err := c.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "docker-image://" + ref}, sourceresolver.Opt{
			ImageOpt: &sourceresolver.ResolveImageOpt{Platform: &ocispecs.Platform{OS: "linux", Architecture: "amd64"}},
		})
		if err != nil {
			return nil, err
		}
		if meta.Op == nil || meta.Op.Identifier == "" {
			return nil, errors.New("no source")
		}
		if meta.Image == nil || meta.Image.Digest != img.root.Digest || len(meta.Image.Config) == 0 {
			return nil, errors.New("no digest or config")
		}
		_, err = c.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "docker-image://" + ref + "-missing"}, sourceresolver.Opt{})
		if err == nil {
			return nil, errors.New("a missing image was resolved")
		}
		return gateway.NewResult(), nil
	})

	require.NoError(t, err)
}

func TestEvaluateFailsForWhatSolveLeftAlone(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	missing := r.host + "/" + unique("missing-") + ":latest"

	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := solveState(ctx, c, llb.Image(missing), false)
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		if err := ref.Evaluate(ctx); err == nil {
			return nil, errors.New("a missing image was evaluated")
		}
		if _, err := solveState(ctx, c, llb.Image(missing), true); err == nil {
			return nil, errors.New("a missing image was solved and evaluated")
		}
		return gateway.NewResult(), nil
	})

	require.NoError(t, err)
}

func TestAWarningReachesTheProgress(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	ref := r.push(unique("warn-"), "latest", newImage(t, 1, "amd64"))
	var vertex digest.Digest

	_, w, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		def, err := llb.Image(ref).Marshal(ctx, llb.LinuxAmd64)
		if err != nil {
			return nil, err
		}
		vertex = digest.FromBytes(def.ToPB().Def[0])
		res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		err = c.Warn(ctx, vertex, "this is odd", gateway.WarnOpts{
			Level:      2,
			Detail:     [][]byte{[]byte("in detail")},
			URL:        "https://example.com/odd",
			SourceInfo: &pb.SourceInfo{Filename: "a.hcl", Data: []byte("x")},
			Range:      []*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}},
		})
		return res, err
	})

	require.NoError(t, err)
	require.Len(t, w.warnings, 1)
	warning := w.warnings[0]
	require.Equal(t, vertex, warning.Vertex)
	require.Equal(t, 2, warning.Level)
	require.Equal(t, "this is odd", string(warning.Short))
	require.Equal(t, "in detail", string(warning.Detail[0]))
	require.Equal(t, "https://example.com/odd", warning.URL)
	require.Equal(t, "a.hcl", warning.SourceInfo.Filename)
	require.Len(t, warning.Range, 1)
}

func TestTheEmptyResultIsADirectoryWithNothingInIt(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := llb.Image(r.push(unique("base-"), "latest", newImage(t, 1, "amd64")))
	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := solveState(ctx, c, llb.Diff(img, img), true)
		require.NoError(t, err)
		ref, err := res.SingleRef()
		require.NoError(t, err)
		found, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
		require.NoError(t, err)
		require.Empty(t, found)
		stat, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/"})
		require.NoError(t, err)
		require.True(t, os.FileMode(stat.Mode).IsDir())
		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/a"})
		require.ErrorContains(t, err, "no such file or directory")
		return res, nil
	})
	require.NoError(t, err)
}

// Who names its exporters when the result is there looks at that first, by the refs that it is given.
func TestAClientLooksAtTheResultBeforeItNamesExporters(t *testing.T) {
	c, id, out := connect(t), unique("build-"), t.TempDir()
	target := filesync.NewFSSyncTarget()
	var asked []string
	exporters := exporterprovider.New(func(ctx context.Context, _ map[string][]byte, refs []string) ([]*exporter.ExporterRequest, error) {
		for _, ref := range refs {
			found, err := c.GatewayClientForBuild(id).ReadDir(ctx, &gwpb.ReadDirRequest{Ref: ref, DirPath: "/"})
			if err != nil {
				return nil, err
			}
			for _, entry := range found.Entries {
				asked = append(asked, entry.Path)
			}
		}
		target.Add(filesync.WithFSSyncDir(0, out))
		return []*exporter.ExporterRequest{{Type: client.ExporterLocal}}, nil
	})
	opt := client.SolveOpt{Ref: id, EnableSessionExporter: true, Session: []session.Attachable{target, exporters}}
	_, _, err := build(t, c, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		state := llb.Scratch().File(llb.Mkfile("/a", 0o644, []byte("a")).Mkfile("/b", 0o644, nil))
		return solveState(ctx, c, state, false)
	})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, asked)
	require.Equal(t, map[string][]byte{"a": []byte("a"), "b": {}}, readTree(t, out))
}

func TestResultsOfPlatformsBecomeAnIndex(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	images := map[string]image{"amd64": newImage(t, 1, "amd64"), "arm64": newImage(t, 2, "arm64")}
	ref, target := r.push(unique("multi-"), "latest", newIndex(t, images)), unique("multi-target-")

	resp, _, err := build(t, c, exports(push(r.host+"/"+target+":v1")), func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res := gateway.NewResult()
		var platforms exptypes.Platforms
		for _, architecture := range []string{"amd64", "arm64"} {
			platform := ocispecs.Platform{OS: "linux", Architecture: architecture}
			def, err := llb.Image(ref, llb.Platform(platform)).Marshal(ctx)
			if err != nil {
				return nil, err
			}
			one, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
			if err != nil {
				return nil, err
			}
			single, err := one.SingleRef()
			if err != nil {
				return nil, err
			}
			id := "linux/" + architecture
			res.AddRef(id, single)
			platforms.Platforms = append(platforms.Platforms, exptypes.Platform{ID: id, Platform: platform})
		}
		dt, err := json.Marshal(platforms)
		if err != nil {
			return nil, err
		}
		res.AddMeta(exptypes.ExporterPlatformsKey, dt)
		return res, nil
	})

	require.NoError(t, err)
	mediaType, dt := r.raw(target, "v1")
	require.Equal(t, ocispecs.MediaTypeImageIndex, mediaType)
	require.Equal(t, digest.FromBytes(dt).String(), resp[imageDigest])
	require.NotContains(t, resp, "containerimage.config.digest")
	index := r.index(target, "v1")
	require.Len(t, index.Manifests, 2)
	for i, architecture := range []string{"amd64", "arm64"} {
		require.Equal(t, architecture, index.Manifests[i].Platform.Architecture)
		manifest := r.manifest(target, index.Manifests[i].Digest.String())
		img := images[architecture]
		require.Equal(t, img.layerDigests(), digests(manifest.Layers))
	}
}

func TestALayoutOfTheClientIsASource(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 3, "amd64")
	target := unique("layout-")
	store, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	for dgst, dt := range img.blobs {
		w, err := content.OpenWriter(testContext(t), store, content.WithRef(dgst.String()))
		require.NoError(t, err)
		_, err = w.Write(dt)
		require.NoError(t, err)
		require.NoError(t, w.Commit(testContext(t), int64(len(dt)), dgst))
		require.NoError(t, w.Close())
	}
	name := "example.com/layout@" + img.root.Digest.String()
	opt := exports(push(r.host + "/" + target + ":v1"))
	opt.OCIStores = map[string]content.Store{"mine": store}

	_, _, err = build(t, c, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		_, dgst, config, err := c.ResolveImageConfig(ctx, name, sourceresolver.Opt{
			OCILayoutOpt: &sourceresolver.ResolveOCILayoutOpt{Store: sourceresolver.ResolveImageConfigOptStore{StoreID: "mine"}},
		})
		if err != nil {
			return nil, err
		}
		if dgst != img.root.Digest || digest.FromBytes(config) != img.config {
			return nil, errors.New("another digest or config")
		}
		return solveState(ctx, c, llb.OCILayout(name, llb.OCIStore("", "mine")), false)
	})

	require.NoError(t, err)
	require.Equal(t, img.layerDigests(), digests(r.manifest(target, "v1").Layers))
	r.holds(target, img.layerDigests()...)
}

func TestAStoreThatTheClientDoesNotHaveIsAnError(t *testing.T) {
	c := connect(t)
	name := "example.com/layout@" + digest.FromString("nothing").String()

	_, _, err := solve(t, c, marshal(t, llb.OCILayout(name, llb.OCIStore("", "nowhere"))), client.SolveOpt{})

	require.Error(t, err)
}

func TestAFrontendSeesWhatItMayUse(t *testing.T) {
	c := connect(t)

	_, _, err := build(t, c, client.SolveOpt{FrontendAttrs: map[string]string{"key": "value"}}, func(_ context.Context, c gateway.Client) (*gateway.Result, error) {
		opts := c.BuildOpts()
		for _, id := range []apicaps.CapID{gwpb.CapSolveBase, gwpb.CapReturnResult, gwpb.CapGatewayEvaluate, gwpb.CapGatewayWarnings} {
			if err := opts.Caps.Supports(id); err != nil {
				return nil, err
			}
		}
		for _, id := range []apicaps.CapID{pb.CapSourceImage, pb.CapSourceOCILayout, pb.CapMergeOp, pb.CapMultipleExporters, pb.CapAnnotations, pb.CapGCFreeSpaceFilter} {
			if err := opts.LLBCaps.Supports(id); err != nil {
				return nil, err
			}
		}
		if opts.Opts["key"] != "value" || opts.SessionID == "" || len(opts.Workers) != 1 {
			return nil, errors.New("options, session or workers are missing")
		}
		return gateway.NewResult(), nil
	})

	require.NoError(t, err)
}

func TestInputsReachTheFrontend(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	img := newImage(t, 1, "amd64")
	ref, target := r.push(unique("inputs-"), "latest", img), unique("inputs-target-")
	opt := exports(push(r.host + "/" + target + ":v1"))
	opt.FrontendInputs = map[string]llb.State{"base": llb.Image(ref)}

	_, _, err := build(t, c, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		inputs, err := c.Inputs(ctx)
		if err != nil {
			return nil, err
		}
		if len(inputs) != 1 {
			return nil, errors.New("not one input")
		}
		return solveState(ctx, c, inputs["base"], false)
	})

	require.NoError(t, err)
	require.Equal(t, img.layerDigests(), digests(r.manifest(target, "v1").Layers))
}

func TestAResultIsAStateAgainWhateverIsKnownOfItsPlaces(t *testing.T) {
	c := connect(t)
	dockerfile := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", []byte("FROM scratch"))
	place := dockerfile.Location([]*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}})
	state := llb.Scratch().File(llb.Mkfile("/a", 0o644, []byte("a")), place).File(llb.Mkfile("/b", 0o644, []byte("b")))

	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		first, err := solveState(ctx, c, state, false)
		if err != nil {
			return nil, err
		}
		ref, err := first.SingleRef()
		if err != nil {
			return nil, err
		}
		again, err := ref.ToState()
		if err != nil {
			return nil, err
		}
		return solveState(ctx, c, again, true)
	})

	require.NoError(t, err)
}

func TestAnErrorOfTheFrontendIsTheErrorOfTheBuild(t *testing.T) {
	c := connect(t)

	within(t, 5*time.Second, "a failed frontend", func() {
		_, _, err := build(t, c, client.SolveOpt{}, func(context.Context, gateway.Client) (*gateway.Result, error) {
			return nil, grpcerrors.WrapCode(errors.New("the frontend does not like it"), codes.InvalidArgument)
		})
		require.ErrorContains(t, err, "the frontend does not like it")
		require.Equal(t, codes.InvalidArgument, grpcerrors.Code(err))
	})
}

func TestManyReferencesLiveAsLongAsTheBuild(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	name := unique("many-")
	const n = 20
	for i := range n {
		r.push(name, describe("v%d", i), newImage(t, 1, "amd64"))
	}

	_, _, err := build(t, c, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		var refs []gateway.Reference
		for i := range n {
			res, err := solveState(ctx, c, llb.Image(r.host+"/"+name+describe(":v%d", i)), false)
			if err != nil {
				return nil, err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return nil, err
			}
			refs = append(refs, ref)
		}
		for _, ref := range refs {
			if err := ref.Evaluate(ctx); err != nil {
				return nil, err
			}
			if _, err := ref.ToState(); err != nil {
				return nil, err
			}
		}
		return gateway.NewResult(), nil
	})

	require.NoError(t, err)
}
