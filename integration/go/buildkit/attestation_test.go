package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/result"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

const (
	vulnerabilities = "https://example.com/vulnerabilities"
	licences        = "https://example.com/licences"
)

// stated is a frontend that gives a result for each platform and states
// something of the first: a predicate about the result and about something else,
// a bundle of two statements, and a predicate for images only.
func stated(platforms ...string) gateway.BuildFunc {
	return func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		file := func(state llb.State, path, text string) llb.State {
			return state.File(llb.Mkfile(path, 0o644, []byte(text), created))
		}
		solved := func(state llb.State) (gateway.Reference, error) {
			res, err := solveState(ctx, c, state, false)
			if err != nil {
				return nil, err
			}
			return res.SingleRef()
		}
		files := llb.Scratch().File(llb.Mkdir("/bundle", 0o755, created))
		files = file(files, "/v.json", ` { "b" : 1.50, "a": "<&>", "e": {}, "l": [ ] }`)
		files = file(files, "/only.json", `"images"`)
		files = file(files, "/bundle/one.json", `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"`+licences+
			`","subject":[{"name":"x","digest":{"sha256":"00","sha1":"11"}}],"predicate":{"z":[],"y":{"k":true}}}`)
		files = file(files, "/bundle/core.json", `{"predicateType":"`+licences+`","predicate":null}`)
		of, err := solved(files)
		if err != nil {
			return nil, err
		}
		res := gateway.NewResult()
		var list exptypes.Platforms
		for _, name := range platforms {
			ref, err := solved(file(file(llb.Scratch().File(llb.Mkdir("/d", 0o755, created)), "/d/hello-"+filepath.Base(name), name), "/z-"+filepath.Base(name), ""))
			if err != nil {
				return nil, err
			}
			platform := ocispecs.Platform{OS: "linux", Architecture: filepath.Base(name)}
			config, err := json.Marshal(ocispecs.Image{Platform: platform})
			if err != nil {
				return nil, err
			}
			list.Platforms = append(list.Platforms, exptypes.Platform{ID: name, Platform: platform})
			if len(platforms) == 1 {
				res.SetRef(ref)
			} else {
				res.AddRef(name, ref)
			}
			res.AddMeta(exptypes.ExporterImageConfigKey+"/"+name, config)
		}
		dt, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		res.AddMeta(exptypes.ExporterPlatformsKey, dt)
		res.AddAttestation(platforms[0], gateway.Attestation{
			Kind: gwpb.AttestationKind_InToto, Ref: of, Path: "/v.json",
			InToto: result.InTotoAttestation{PredicateType: vulnerabilities, Subjects: []result.InTotoSubject{
				{Kind: gwpb.InTotoSubjectKind_Self, Name: "alias"},
				{Kind: gwpb.InTotoSubjectKind_Raw, Name: "raw", Digest: []digest.Digest{digest.FromString("raw")}},
			}},
		})
		res.AddAttestation(platforms[0], gateway.Attestation{
			Kind: gwpb.AttestationKind_Bundle, Ref: of, Path: "/bundle",
			Metadata: map[string][]byte{result.AttestationSBOMCore: []byte("/bundle/core")},
			InToto:   result.InTotoAttestation{PredicateType: licences},
		})
		res.AddAttestation(platforms[0], gateway.Attestation{
			Kind: gwpb.AttestationKind_InToto, Ref: of, Path: "/only.json",
			Metadata: map[string][]byte{result.AttestationInlineOnlyKey: []byte("true")},
			InToto:   result.InTotoAttestation{PredicateType: vulnerabilities},
		})
		return res, nil
	}
}

func statement(predicateType, subjects, predicate string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","predicateType":%q,"subject":[%s],"predicate":%s}`, predicateType, subjects, predicate)
}

func TestStatementsOfAFrontendAreManifestsBesideTheImage(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	for _, test := range []struct {
		name      string
		platforms []string
		artifact  bool
		attrs     []string
	}{
		{"one platform", []string{"linux/amd64"}, true, nil},
		{"two platforms", []string{"linux/amd64", "linux/arm64"}, true, nil},
		{"as an image", []string{"linux/amd64"}, false, []string{"oci-artifact", "false"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := unique("stated-")
			ref := r.host + "/" + target

			_, _, err := build(t, c, exports(push(ref+":v1,"+ref+":v2", test.attrs...)), stated(test.platforms...))

			require.NoError(t, err)
			index := r.index(target, "v1")
			require.Len(t, index.Manifests, len(test.platforms)+1)
			for i, platform := range test.platforms {
				require.Equal(t, platform, "linux/"+index.Manifests[i].Platform.Architecture)
			}
			image, desc := index.Manifests[0], index.Manifests[len(test.platforms)]
			require.Equal(t, &ocispecs.Platform{OS: "unknown", Architecture: "unknown"}, desc.Platform)
			require.Equal(t, map[string]string{
				"vnd.docker.reference.type":   "attestation-manifest",
				"vnd.docker.reference.digest": image.Digest.String(),
			}, desc.Annotations)

			named := func(name string) string {
				return fmt.Sprintf(`{"name":%q,"digest":{"sha256":%q}}`, name, image.Digest.Encoded())
			}
			url := func(tag string) string {
				host := digestless(r.host)
				return named("pkg:docker/" + host + "/" + target + "@" + tag + "?platform=linux%2Famd64")
			}
			alias := named("alias")
			raw := fmt.Sprintf(`{"name":"raw","digest":{"sha256":%q}}`, digest.FromString("raw").Encoded())
			texts := []string{
				statement(licences, url("v1")+","+url("v2"), `null`),
				statement(vulnerabilities, url("v1")+","+alias+","+url("v2")+","+alias+","+raw, `{"b":1.50,"a":"\u003c\u0026\u003e","e":{},"l":[]}`),
				statement(licences, `{"name":"x","digest":{"sha1":"11","sha256":"00"}}`, `{"y":{"k":true},"z":[]}`),
				statement(vulnerabilities, url("v1")+","+url("v2"), `"images"`),
			}
			manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
			var ids []digest.Digest
			for i, text := range texts {
				kind := vulnerabilities
				if i%2 == 0 {
					kind = licences
				}
				ids = append(ids, digest.FromString(text))
				manifest.Layers = append(manifest.Layers, ocispecs.Descriptor{
					MediaType: "application/vnd.in-toto+json", Digest: ids[i], Size: int64(len(text)),
					Annotations: map[string]string{"in-toto.io/predicate-type": kind},
				})
			}
			if test.artifact {
				manifest.ArtifactType = "application/vnd.docker.attestation.manifest.v1+json"
				manifest.Config = ocispecs.DescriptorEmptyJSON
				manifest.Subject = &ocispecs.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}
			} else {
				config := ocispecs.Image{
					Platform: ocispecs.Platform{OS: "unknown", Architecture: "unknown"},
					RootFS:   ocispecs.RootFS{Type: "layers", DiffIDs: ids},
				}
				dt := encode(t, config)
				manifest.Config = ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: digest.FromBytes(dt), Size: int64(len(dt))}
			}
			_, dt := r.raw(target, desc.Digest.String())
			for i, text := range texts {
				var written ocispecs.Manifest
				require.NoError(t, json.Unmarshal(dt, &written))
				require.Len(t, written.Layers, len(texts))
				require.Equal(t, text, string(r.blob(target, written.Layers[i].Digest)))
			}
			expected, err := json.MarshalIndent(manifest, "", "  ")
			require.NoError(t, err)
			require.Equal(t, string(expected), string(dt))
			r.holds(target, append(ids, manifest.Config.Digest)...)
		})
	}
}

// digestless is a host as a package URL has it.
func digestless(host string) string {
	for i := range host {
		if host[i] == ':' {
			return host[:i] + "%3A" + host[i+1:]
		}
	}
	return host
}

func TestAnArchiveOfAnAttestedImageIsWholeUnlessAllIsForImagesOnly(t *testing.T) {
	c := connect(t)
	inline := func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := stated("linux/amd64")(ctx, c)
		if err != nil {
			return nil, err
		}
		list := res.Attestations["linux/amd64"]
		res.Attestations["linux/amd64"] = list[len(list)-1:]
		return res, nil
	}
	for _, test := range []struct {
		run   gateway.BuildFunc
		attrs map[string]string
		index bool
	}{
		{stated("linux/amd64"), nil, true},
		{inline, nil, false},
		{inline, map[string]string{"attestation-inline": "true"}, true},
	} {
		a := newArchive()
		_, _, err := build(t, c, exports(client.ExportEntry{Type: client.ExporterOCI, Output: a.open, Attrs: test.attrs}), test.run)
		require.NoError(t, err)
		files := a.files(t)
		root := a.index(t).Manifests[0]
		require.Equal(t, test.index, root.MediaType == ocispecs.MediaTypeImageIndex)
		if !test.index {
			continue
		}
		var index ocispecs.Index
		require.NoError(t, json.Unmarshal(files["blobs/sha256/"+root.Digest.Encoded()], &index))
		require.Len(t, index.Manifests, 2)
		for _, desc := range index.Manifests {
			var manifest ocispecs.Manifest
			require.NoError(t, json.Unmarshal(files["blobs/sha256/"+desc.Digest.Encoded()], &manifest))
			for _, blob := range append(manifest.Layers, manifest.Config) {
				require.Contains(t, files, "blobs/sha256/"+blob.Digest.Encoded())
			}
		}
	}
}

func TestStatementsAreFilesBesideThoseTheyAreAbout(t *testing.T) {
	c := connect(t)
	files := func(attrs map[string]string, platforms ...string) map[string][]byte {
		dir := t.TempDir()
		_, _, err := build(t, c, exports(client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir, Attrs: attrs}), stated(platforms...))
		require.NoError(t, err)
		return readTree(t, dir)
	}
	names := func(files map[string][]byte) []string {
		var out []string
		for name := range files {
			out = append(out, name)
		}
		return out
	}

	one := files(nil, "linux/amd64")
	require.ElementsMatch(t, []string{"d/hello-amd64", "z-amd64", "v.json", "one.json", "core.json"}, names(one))
	hello, empty := digest.FromString("linux/amd64").Encoded(), digest.FromString("").Encoded()
	named := func(name, hex string) string {
		return fmt.Sprintf("    {\n      \"name\": %q,\n      \"digest\": {\n        \"sha256\": %q\n      }\n    }", name, hex)
	}
	require.Equal(t, `{
  "_type": "https://in-toto.io/Statement/v1",
  "predicateType": "`+vulnerabilities+`",
  "subject": [
`+named("d/hello-amd64", hello)+",\n"+named("alias", hello)+",\n"+named("z-amd64", empty)+",\n"+named("alias", empty)+",\n"+
		named("raw", digest.FromString("raw").Encoded())+`
  ],
  "predicate": {
    "b": 1.50,
    "a": "\u003c\u0026\u003e",
    "e": {},
    "l": []
  }
}`, string(one["v.json"]))

	require.ElementsMatch(t, []string{"d/hello-amd64", "z-amd64", "my-v.json", "my-one.json", "my-core.json"},
		names(files(map[string]string{"attestation-prefix": "my-"}, "linux/amd64")))
	require.ElementsMatch(t, []string{
		"linux_amd64/d/hello-amd64", "linux_amd64/z-amd64", "linux_amd64/v.json", "linux_amd64/one.json", "linux_amd64/core.json",
		"linux_arm64/d/hello-arm64", "linux_arm64/z-arm64",
	}, names(files(nil, "linux/amd64", "linux/arm64")))
	require.ElementsMatch(t, []string{
		"d/hello-amd64", "z-amd64", "v.linux_amd64.json", "one.linux_amd64.json", "core.linux_amd64.json", "d/hello-arm64", "z-arm64",
	}, names(files(map[string]string{"platform-split": "false"}, "linux/amd64", "linux/arm64")))

	a := newArchive()
	_, _, err := build(t, c, exports(client.ExportEntry{Type: client.ExporterTar, Output: a.open}), stated("linux/amd64"))
	require.NoError(t, err)
	require.Equal(t, string(one["v.json"]), string(a.files(t)["v.json"]))
}

func TestAFileOfTheResultGivesWayToAStatement(t *testing.T) {
	c := connect(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "there"), []byte("before"), 0o644))

	_, _, err := build(t, c, exports(client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir, Attrs: map[string]string{"mode": "delete"}}),
		func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			res, err := solveState(ctx, c, llb.Scratch().File(llb.Mkfile("/v.json", 0o644, []byte(`"predicate"`))), false)
			if err != nil {
				return nil, err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return nil, err
			}
			res.AddMeta(exptypes.ExporterPlatformsKey, []byte(`{"Platforms":[{"ID":"p","Platform":{"os":"linux","architecture":"amd64"}}]}`))
			res.AddAttestation("p", gateway.Attestation{Kind: gwpb.AttestationKind_InToto, Ref: ref, Path: "v.json", InToto: result.InTotoAttestation{PredicateType: licences}})
			return res, nil
		})

	require.NoError(t, err)
	files := readTree(t, dir)
	require.Len(t, files, 1)
	require.Contains(t, string(files["v.json"]), `"predicate": "predicate"`)
}

func TestStatementsThatCanNotBeMadeAreErrors(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	for name, test := range map[string]struct {
		text  string
		att   gateway.Attestation
		attrs []string
	}{
		"provenance":  {"frontend may not set provenance attestations", gateway.Attestation{Path: "f", InToto: result.InTotoAttestation{PredicateType: "https://slsa.dev/provenance/v1"}}, nil},
		"no path":     {"attestation does not have set path", gateway.Attestation{}, nil},
		"no file":     {"no such file or directory", gateway.Attestation{Path: "none"}, nil},
		"outside":     {"no such file or directory", gateway.Attestation{Path: "../../../../../../etc/passwd"}, nil},
		"directory":   {"not a regular file", gateway.Attestation{Path: "d"}, nil},
		"no JSON":     {"", gateway.Attestation{Path: "f"}, nil},
		"other types": {"oci-mediatypes=false", gateway.Attestation{Path: "f"}, []string{"oci-mediatypes", "false"}},
		"bundle":      {"does not match required predicate type", gateway.Attestation{Kind: gwpb.AttestationKind_Bundle, Path: "d", InToto: result.InTotoAttestation{PredicateType: licences}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := build(t, c, exports(push(r.host+"/"+unique("bad-")+":v1", test.attrs...)), func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				state := llb.Scratch().File(llb.Mkdir("/d", 0o755)).
					File(llb.Mkfile("/f", 0o644, []byte("{} more"))).
					File(llb.Mkfile("/d/s", 0o644, []byte(`{"predicateType":"other"}`)))
				res, err := solveState(ctx, c, state, false)
				if err != nil {
					return nil, err
				}
				ref, err := res.SingleRef()
				if err != nil {
					return nil, err
				}
				test.att.Ref = ref
				res.AddMeta(exptypes.ExporterPlatformsKey, []byte(`{"Platforms":[{"ID":"p","Platform":{"os":"linux","architecture":"amd64"}}]}`))
				res.AddAttestation("p", test.att)
				return res, nil
			})
			require.ErrorContains(t, err, test.text)
		})
	}
}
