package conformance

import (
	"errors"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestAFailedVertexNamesItselfAndItsSource(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	missing := r.host + "/" + unique("missing-") + ":latest"
	file := []byte("FROM nothing\n")
	location := []*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1, Character: 12}}}
	state := llb.Image(missing, llb.NewSourceMap(nil, "Thunkfile", "Dockerfile", file).Location(location))
	def := marshal(t, state)
	vertex := digest.FromBytes(def.ToPB().Def[0])

	_, w, err := solve(t, c, def, exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))

	require.ErrorContains(t, err, missing)
	var failed *errdefs.VertexError
	require.True(t, errors.As(err, &failed), "%+v", err)
	require.Equal(t, vertex.String(), failed.Digest)
	sources := errdefs.Sources(err)
	require.Len(t, sources, 1)
	require.Equal(t, "Thunkfile", sources[0].Info.Filename)
	require.Equal(t, "Dockerfile", sources[0].Info.Language)
	require.Equal(t, file, sources[0].Info.Data)
	require.Len(t, sources[0].Ranges, 1)
	require.Equal(t, int32(12), sources[0].Ranges[0].End.Character)

	reported := w.last()[vertex.String()]
	require.NotNil(t, reported)
	require.NotEmpty(t, reported.Error)
	require.NotNil(t, reported.Completed)
}

// Clients show the first place, which for them is the one that was named last.
func TestOfSeveralSourcesTheLastOneIsTheFirst(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	missing := r.host + "/" + unique("missing-") + ":latest"
	one, other := llb.NewSourceMap(nil, "one", "", []byte("1")), llb.NewSourceMap(nil, "other", "", []byte("2"))
	at := func(line int32) []*pb.Range { return []*pb.Range{{Start: &pb.Position{Line: line}}} }
	state := llb.Image(missing, one.Location(at(7)), other.Location(at(8)), one.Location(at(9)))

	_, _, err := solve(t, c, marshal(t, state), exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard}))

	var places []string
	for _, source := range errdefs.Sources(err) {
		places = append(places, describe("%s:%d", source.Info.Filename, source.Ranges[0].Start.Line))
	}
	require.Equal(t, []string{"one:9", "other:8", "one:7"}, places)
}

func TestTheProgressOfNobodysBuildIsNotFound(t *testing.T) {
	c := connect(t)

	stream, err := c.ControlClient().Status(testContext(t), &controlapi.StatusRequest{Ref: unique("nobody-")})
	if err == nil {
		_, err = stream.Recv()
	}

	require.ErrorContains(t, err, "no such job")
	require.Equal(t, codes.NotFound, grpcerrors.Code(err))
}

func TestTheBridgeOfNobodysBuildIsNotFound(t *testing.T) {
	c := connect(t)

	within(t, 10*time.Second, "the wait for a build that never comes", func() {
		_, err := c.GatewayClientForBuild(unique("nobody-")).Ping(testContext(t), &gwpb.PingRequest{})
		require.ErrorContains(t, err, "no such job")
		require.Equal(t, codes.NotFound, grpcerrors.Code(err))
	})
}

func TestAReferenceInUseIsRefused(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, hold(blobGet, nil))
	name := unique("twice-")
	r.push(name, "latest", newImage(t, 1, "amd64"))
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	opt := exports(client.ExportEntry{Type: client.ExporterOCI, Output: discard})
	opt.Ref = unique("ref-")
	first := start(t, c, def, opt)
	p.wait(t, blobGet, 1)

	_, err := c.ControlClient().Solve(testContext(t), &controlapi.SolveRequest{Ref: opt.Ref, Definition: def.ToPB()})

	require.ErrorContains(t, err, opt.Ref)
	first.cancel()
	require.Error(t, first.wait(t))
}

// definition joins raw ops, the last one pointing at the one before.
func definition(ops ...[]byte) *pb.Definition {
	last, _ := (&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(ops[len(ops)-1]).String()}}}).Marshal()
	return &pb.Definition{Def: append(ops, last)}
}

func TestDefinitionsThatMakeNoSenseAreRefused(t *testing.T) {
	c := connect(t)
	encode := func(op *pb.Op) []byte {
		dt, err := op.Marshal()
		require.NoError(t, err)
		return dt
	}
	image := encode(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://example.com/a:b"}}})
	unknown := protowire.AppendTag(nil, 99, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, []byte("from the future"))
	dangling := encode(&pb.Op{
		Inputs: []*pb.Input{{Digest: digest.FromString("nowhere").String()}},
		Op:     &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}}}},
	})

	for name, def := range map[string]*pb.Definition{
		"an op of an unknown kind": definition(unknown),
		"an input from nowhere":    definition(dangling),
		"bytes that are no op":     definition([]byte{0xff, 0xff, 0xff}),
		"a source of no scheme":    definition(encode(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "example.com"}}})),
		"a source of a new scheme": definition(encode(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "gopher://example.com"}}})),
		"an image of no name":      definition(encode(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://"}}})),
		"a merge beyond its inputs": definition(image, encode(&pb.Op{
			Inputs: []*pb.Input{{Digest: digest.FromBytes(image).String()}},
			Op:     &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 7}}}},
		})),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.ControlClient().Solve(testContext(t), &controlapi.SolveRequest{Ref: unique("odd-"), Definition: def})
			require.Error(t, err)
			require.NotEqual(t, codes.Unavailable, grpcerrors.Code(err), "the daemon did not survive: %v", err)
			require.NotEqual(t, codes.DeadlineExceeded, grpcerrors.Code(err))
		})
	}
	_, err := c.Info(testContext(t))
	require.NoError(t, err)
}

func TestAnEmptyDefinitionIsAnEmptyResult(t *testing.T) {
	c := connect(t)

	_, err := c.ControlClient().Solve(testContext(t), &controlapi.SolveRequest{Ref: unique("empty-"), Definition: &pb.Definition{}})

	require.NoError(t, err)
}

func TestAnUnknownFrontendIsRefused(t *testing.T) {
	c := connect(t)

	_, err := c.ControlClient().Solve(testContext(t), &controlapi.SolveRequest{Ref: unique("frontend-"), Frontend: "nonsense.v9"})

	require.ErrorContains(t, err, "nonsense.v9")
}

func TestAnUnknownEntitlementIsRefused(t *testing.T) {
	c := connect(t)

	_, err := c.ControlClient().Solve(testContext(t), &controlapi.SolveRequest{
		Ref: unique("entitlement-"), Definition: &pb.Definition{}, Entitlements: []string{"nonsense"},
	})

	require.ErrorContains(t, err, "nonsense")
}
