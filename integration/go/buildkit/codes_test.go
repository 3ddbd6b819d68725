package conformance

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// requireCode holds for thunkd; BuildKit's daemon has a code for few of these
// errors, and must only agree that there is one.
func requireCode(t *testing.T, code codes.Code, err error) {
	t.Helper()
	require.Error(t, err)
	if os.Getenv("DAEMON") != "buildkitd" {
		require.Equal(t, code.String(), grpcerrors.Code(err).String(), "%+v", err)
	}
}

// requireRefusal asks as well for the name of whoever refused, which BuildKit's
// daemon does not tell of a blob that is not there.
func requireRefusal(t *testing.T, code codes.Code, host string, err error) {
	t.Helper()
	requireCode(t, code, err)
	if os.Getenv("DAEMON") != "buildkitd" {
		require.ErrorContains(t, err, host)
	}
}

var (
	manifestRead = regexp.MustCompile(`^(GET|HEAD) /v2/.*/manifests/`)
	uploadStart  = regexp.MustCompile(`^POST /v2/.*/blobs/uploads/`)
)

// answer refuses requests with a status, for longer than a client should wait.
func answer(pattern *regexp.Regexp, status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !pattern.MatchString(r.Method + " " + r.URL.Path) {
			return false
		}
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(status)
		return true
	}
}

// damage answers reads of blobs with other bytes of the same length.
func damage(r registry, img image) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, req *http.Request) bool {
		for _, dgst := range img.layerDigests() {
			if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/blobs/"+dgst.String()) {
				dt := append([]byte(nil), img.blobs[dgst]...)
				dt[len(dt)/2] ^= 1
				_, _ = w.Write(dt)
				return true
			}
		}
		return false
	}
}

// layerGet matches reads of the layers of an image, and not of its config.
func layerGet(img image) *regexp.Regexp {
	var hexes []string
	for _, dgst := range img.layerDigests() {
		hexes = append(hexes, dgst.Encoded())
	}
	return regexp.MustCompile(`^GET /v2/.*/blobs/sha256:(` + strings.Join(hexes, "|") + `)$`)
}

var refusals = map[int]codes.Code{
	http.StatusUnauthorized:        codes.Unauthenticated,
	http.StatusForbidden:           codes.PermissionDenied,
	http.StatusNotFound:            codes.NotFound,
	http.StatusTooManyRequests:     codes.ResourceExhausted,
	http.StatusInternalServerError: codes.Unavailable,
	http.StatusServiceUnavailable:  codes.Unavailable,
}

func TestARefusedSourceHasItsCode(t *testing.T) {
	r := newRegistry(t)
	for status, code := range refusals {
		for _, what := range []string{"manifest", "layer"} {
			t.Run(what+" "+http.StatusText(status), func(t *testing.T) {
				t.Parallel()
				img := newImage(t, 1, "amd64")
				name := unique("refused-")
				r.push(name, "latest", img)
				pattern := manifestRead
				if what == "layer" {
					pattern = layerGet(img)
				}
				p := newProxy(t, answer(pattern, status))
				state := llb.Image(p.host + "/" + name + ":latest")
				_, _, err := solve(t, connect(t), marshal(t, state), exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))
				requireRefusal(t, code, p.host, err)
			})
		}
	}
}

func TestARefusedPushHasItsCode(t *testing.T) {
	r := newRegistry(t)
	for status, code := range refusals {
		for what, pattern := range map[string]*regexp.Regexp{"upload": uploadStart, "manifest": manifestPut} {
			t.Run(what+" "+http.StatusText(status), func(t *testing.T) {
				t.Parallel()
				ref := r.push(unique("refused-"), "latest", newImage(t, 1, "amd64"))
				p := newProxy(t, answer(pattern, status))
				_, _, err := solve(t, connect(t), marshal(t, llb.Image(ref)), exports(push(p.host+"/"+unique("target-")+":v1")))
				requireCode(t, code, err)
			})
		}
	}
}

// Bytes that a push passes on are refused by where they come from.
func TestAPushOfWhatCannotBeReadHasTheCodeOfTheRead(t *testing.T) {
	r := newRegistry(t)
	for status, code := range refusals {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			img := newImage(t, 1, "amd64")
			name := unique("unreadable-")
			r.push(name, "latest", img)
			p := newProxy(t, answer(layerGet(img), status))
			// Under another name for the same registry nothing can be mounted.
			_, port, err := net.SplitHostPort(r.host)
			require.NoError(t, err)
			target := "localhost:" + port + "/" + unique("target-") + ":v1"
			_, _, err = solve(t, connect(t), marshal(t, llb.Image(p.host+"/"+name+":latest")), exports(push(target)))
			requireRefusal(t, code, p.host, err)
		})
	}
}

func TestDamagedBytesAreDataLoss(t *testing.T) {
	r := newRegistry(t)
	img := newImage(t, 1, "amd64")
	name := unique("damaged-")
	r.push(name, "latest", img)
	p := newProxy(t, damage(r, img))
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))

	_, _, err := solve(t, connect(t), def, exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))

	requireCode(t, codes.DataLoss, err)
}

func TestAnUnreachableRegistryIsUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := listener.Addr().String()
	require.NoError(t, listener.Close())

	_, _, err = solve(t, connect(t), marshal(t, llb.Image(host+"/nobody/here:v1")), client.SolveOpt{})

	requireCode(t, codes.Unavailable, err)
	require.ErrorContains(t, err, host)
}

// A frontend that hands on what its own solve failed with hands on the code, the vertex and its source.
func TestTheCodeOfANestedSolveComesThroughReturn(t *testing.T) {
	r := newRegistry(t)
	name := unique("nested-")
	r.push(name, "latest", newImage(t, 1, "amd64"))
	for status, code := range map[int]codes.Code{
		http.StatusUnauthorized: codes.Unauthenticated,
		http.StatusForbidden:    codes.PermissionDenied,
		http.StatusNotFound:     codes.NotFound,
	} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			p := newProxy(t, answer(manifestRead, status))
			location := []*pb.Range{{Start: &pb.Position{Line: 3}, End: &pb.Position{Line: 3}}}
			source := llb.NewSourceMap(nil, "Thunkfile", "Dockerfile", []byte("FROM x\n"))
			state := llb.Image(p.host+"/"+name+":latest", source.Location(location))
			vertex := digest.FromBytes(marshal(t, state).ToPB().Def[0])
			var inner error

			_, _, err := build(t, connect(t), client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				_, inner = solveState(ctx, c, state, true)
				return nil, inner
			})

			for _, err := range []error{inner, err} {
				requireCode(t, code, err)
				var failed *errdefs.VertexError
				require.True(t, errors.As(err, &failed), "%+v", err)
				require.Equal(t, vertex.String(), failed.Digest)
				require.Len(t, errdefs.Sources(err), 1)
			}
		})
	}
}

// A ref that nobody looked at fails when the daemon needs it, after Return.
func TestTheCodeOfALazyRefComesWithTheBuild(t *testing.T) {
	r := newRegistry(t)
	name := unique("lazy-")
	r.push(name, "latest", newImage(t, 1, "amd64"))
	p := newProxy(t, answer(manifestRead, http.StatusForbidden))
	state := llb.Image(p.host + "/" + name + ":latest")

	_, _, err := build(t, connect(t), client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		return solveState(ctx, c, state, false)
	})

	requireCode(t, codes.PermissionDenied, err)
}

func TestAFailedVertexTellsItsOp(t *testing.T) {
	thunkOnly(t, "it tells the op only to frontends, of ops that have mounts")
	r := newRegistry(t)
	missing := r.host + "/" + unique("missing-") + ":latest"
	state := llb.Image(missing, llb.WithCustomName("the base"), llb.ResolveModeForcePull)

	_, _, err := solve(t, connect(t), marshal(t, state), client.SolveOpt{})

	requireCode(t, codes.NotFound, err)
	var failed *errdefs.SolveError
	require.True(t, errors.As(err, &failed), "%+v", err)
	source := failed.Op.GetSource()
	require.NotNil(t, source)
	require.Equal(t, "docker-image://"+missing, source.Identifier)
	require.Equal(t, "pull", source.Attrs[pb.AttrImageResolveMode])
	require.Equal(t, "amd64", failed.Op.Platform.Architecture)
	require.Equal(t, "the base", failed.Description["llb.customname"])
	require.Empty(t, failed.InputIDs)
	require.Empty(t, failed.MountIDs)
}

func TestAFrontendThatIsNotThereSupportsNothing(t *testing.T) {
	thunkOnly(t, "it names an unknown frontend in the message alone")
	request := &controlapi.SolveRequest{
		Ref: unique("frontend-"), Frontend: "nonsense.v9",
		FrontendAttrs: map[string]string{"requestid": "frontend.outline", "frontend.caps": "moby.one,moby.two"},
	}

	_, err := connect(t).ControlClient().Solve(testContext(t), request)

	requireCode(t, codes.Unimplemented, err)
	frontends := errdefs.Frontends(err)
	require.Len(t, frontends, 1)
	require.Equal(t, "nonsense.v9", frontends[0].Name)
	var subrequest *errdefs.UnsupportedSubrequestError
	require.True(t, errors.As(err, &subrequest), "%+v", err)
	require.Equal(t, "frontend.outline", subrequest.Name)
	var missing *errdefs.UnsupportedFrontendCapError
	require.True(t, errors.As(err, &missing), "%+v", err)
	require.Contains(t, []string{"moby.one", "moby.two"}, missing.Name)
}

func TestWhatABridgeCannotDoIsACapability(t *testing.T) {
	thunkOnly(t, "it runs containers for frontends")
	var inner error

	_, _, err := build(t, connect(t), client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		_, inner = c.NewContainer(ctx, gateway.NewContainerRequest{})
		return nil, inner
	})

	require.Error(t, err)
	require.Error(t, inner)
}
