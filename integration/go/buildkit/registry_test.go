package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// image is what the tests push: all of its bytes by digest, and its root.
type image struct {
	root   ocispecs.Descriptor
	blobs  map[digest.Digest][]byte
	layers []ocispecs.Descriptor
	config digest.Digest
}

// newImage makes an image of incompressible layers for a platform.
func newImage(t *testing.T, layers int, architecture string) image {
	t.Helper()
	img := image{blobs: map[digest.Digest][]byte{}}
	config := ocispecs.Image{
		Platform: ocispecs.Platform{OS: "linux", Architecture: architecture},
		Config:   ocispecs.ImageConfig{Env: []string{"PATH=/bin"}, Labels: map[string]string{"made": "for a test"}},
		RootFS:   ocispecs.RootFS{Type: "layers"},
	}
	for i := range layers {
		archive, compressed := layer(t, fmt.Sprintf("file-%d", i), 64<<10)
		img.layers = append(img.layers, img.add(ocispecs.MediaTypeImageLayerGzip, compressed))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(archive))
		created := time.Unix(int64(1700000000+i), 0).UTC()
		config.History = append(config.History, ocispecs.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	desc := img.add(ocispecs.MediaTypeImageConfig, encode(t, config))
	img.config = desc.Digest
	img.root = img.add(ocispecs.MediaTypeImageManifest, encode(t, ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispecs.MediaTypeImageManifest,
		Config:    desc,
		Layers:    img.layers,
	}))
	return img
}

// newIndex joins images under their platforms.
func newIndex(t *testing.T, platforms map[string]image) image {
	t.Helper()
	all := image{blobs: map[digest.Digest][]byte{}}
	index := ocispecs.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispecs.MediaTypeImageIndex,
	}
	for architecture, img := range platforms {
		for dgst, dt := range img.blobs {
			all.blobs[dgst] = dt
		}
		desc := img.root
		desc.Platform = &ocispecs.Platform{OS: "linux", Architecture: architecture}
		index.Manifests = append(index.Manifests, desc)
	}
	all.root = all.add(ocispecs.MediaTypeImageIndex, encode(t, index))
	return all
}

func (img *image) add(mediaType string, dt []byte) ocispecs.Descriptor {
	dgst := digest.FromBytes(dt)
	img.blobs[dgst] = dt
	return ocispecs.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(dt))}
}

func (img *image) layerDigests() []digest.Digest { return digests(img.layers) }

func digests(descs []ocispecs.Descriptor) []digest.Digest {
	var out []digest.Digest
	for _, desc := range descs {
		out = append(out, desc.Digest)
	}
	return out
}

func layer(t *testing.T, name string, size int) (archive, compressed []byte) {
	t.Helper()
	contents := make([]byte, size)
	_, _ = rand.Read(contents)
	var plain, zipped bytes.Buffer
	tw := tar.NewWriter(&plain)
	require.NoError(t, tw.WriteHeader(&tar.Header{
		Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0),
	}))
	_, err := tw.Write(contents)
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	zw := gzip.NewWriter(&zipped)
	_, err = zw.Write(plain.Bytes())
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	return plain.Bytes(), zipped.Bytes()
}

func encode(t *testing.T, value any) []byte {
	t.Helper()
	dt, err := json.Marshal(value)
	require.NoError(t, err)
	return dt
}

// registry is the test registry, spoken to by its own API.
type registry struct {
	t    *testing.T
	host string
}

func newRegistry(t *testing.T) registry {
	t.Helper()
	return registry{t: t, host: env(t, "TEST_REGISTRY")}
}

// on speaks of the same registry under the address of a proxy.
func (r registry) on(host string) registry { return registry{t: r.t, host: host} }

func (r registry) do(method, target string, headers map[string]string, body []byte) (*http.Response, []byte) {
	r.t.Helper()
	if !strings.HasPrefix(target, "http") {
		target = "http://" + r.host + target
	}
	req, err := http.NewRequestWithContext(testContext(r.t), method, target, bytes.NewReader(body))
	require.NoError(r.t, err)
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	dt, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return resp, dt
}

// push stores an image and gives its reference.
func (r registry) push(repository, tag string, img image) string {
	r.t.Helper()
	index := img.root.MediaType == ocispecs.MediaTypeImageIndex
	var manifests []digest.Digest
	for dgst, dt := range img.blobs {
		if dgst == img.root.Digest {
			continue
		}
		if index && bytes.Contains(dt, []byte(`"layers":[{`)) {
			manifests = append(manifests, dgst)
			continue
		}
		resp, _ := r.do(http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil, nil)
		require.Equal(r.t, http.StatusAccepted, resp.StatusCode)
		location, err := resp.Location()
		require.NoError(r.t, err)
		query := location.Query()
		query.Set("digest", dgst.String())
		location.RawQuery = query.Encode()
		resp, _ = r.do(http.MethodPut, location.String(), map[string]string{"Content-Type": "application/octet-stream"}, dt)
		require.Equal(r.t, http.StatusCreated, resp.StatusCode)
	}
	for _, dgst := range manifests {
		r.putManifest(repository, dgst.String(), ocispecs.MediaTypeImageManifest, img.blobs[dgst])
	}
	r.putManifest(repository, tag, img.root.MediaType, img.blobs[img.root.Digest])
	return r.host + "/" + repository + ":" + tag
}

func (r registry) putManifest(repository, reference, mediaType string, dt []byte) {
	r.t.Helper()
	resp, text := r.do(http.MethodPut, "/v2/"+repository+"/manifests/"+reference, map[string]string{"Content-Type": mediaType}, dt)
	require.Equal(r.t, http.StatusCreated, resp.StatusCode, string(text))
}

// raw gives the bytes and type behind a tag or digest.
func (r registry) raw(repository, reference string) (string, []byte) {
	r.t.Helper()
	resp, dt := r.do(http.MethodGet, "/v2/"+repository+"/manifests/"+reference, map[string]string{
		"Accept": strings.Join([]string{
			ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex,
			"application/vnd.docker.distribution.manifest.v2+json",
			"application/vnd.docker.distribution.manifest.list.v2+json",
		}, ","),
	}, nil)
	require.Equal(r.t, http.StatusOK, resp.StatusCode, string(dt))
	return resp.Header.Get("Content-Type"), dt
}

func (r registry) manifest(repository, reference string) ocispecs.Manifest {
	r.t.Helper()
	var manifest ocispecs.Manifest
	_, dt := r.raw(repository, reference)
	require.NoError(r.t, json.Unmarshal(dt, &manifest))
	return manifest
}

func (r registry) index(repository, reference string) ocispecs.Index {
	r.t.Helper()
	var index ocispecs.Index
	_, dt := r.raw(repository, reference)
	require.NoError(r.t, json.Unmarshal(dt, &index))
	return index
}

func (r registry) blob(repository string, dgst digest.Digest) []byte {
	r.t.Helper()
	resp, dt := r.do(http.MethodGet, "/v2/"+repository+"/blobs/"+dgst.String(), nil, nil)
	require.Equal(r.t, http.StatusOK, resp.StatusCode)
	require.Equal(r.t, dgst, digest.FromBytes(dt))
	return dt
}

func (r registry) imageConfig(repository string, dgst digest.Digest) ocispecs.Image {
	r.t.Helper()
	var config ocispecs.Image
	require.NoError(r.t, json.Unmarshal(r.blob(repository, dgst), &config))
	return config
}

// holds checks that a repository has whole blobs.
func (r registry) holds(repository string, blobs ...digest.Digest) {
	r.t.Helper()
	for _, dgst := range blobs {
		r.blob(repository, dgst)
	}
}

// proxy stands before the registry: it counts, can demand credentials, and can
// hold requests back.
type proxy struct {
	host string

	mu       sync.Mutex
	requests []request
	changed  chan struct{}

	// before may answer a request itself; it then returns true.
	before func(http.ResponseWriter, *http.Request) bool
}

type request struct {
	method, path string
}

func newProxy(t *testing.T, before func(http.ResponseWriter, *http.Request) bool) *proxy {
	t.Helper()
	p := &proxy{before: before, changed: make(chan struct{})}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: env(t, "TEST_REGISTRY")})
			// The registry writes its own address from this into locations.
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests = append(p.requests, request{r.Method, r.URL.Path})
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if p.before != nil && p.before(w, r) {
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	p.host = strings.TrimPrefix(server.URL, "http://")
	return p
}

var (
	blobGet     = regexp.MustCompile(`^GET /v2/.*/blobs/sha256:[0-9a-f]{64}$`)
	blobUpload  = regexp.MustCompile(`^(PUT|PATCH) /v2/.*/blobs/uploads/`)
	manifestPut = regexp.MustCompile(`^PUT /v2/.*/manifests/`)
)

func (p *proxy) count(pattern *regexp.Regexp) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.countLocked(pattern)
}

func (p *proxy) countLocked(pattern *regexp.Regexp) int {
	n := 0
	for _, r := range p.requests {
		if pattern.MatchString(r.method + " " + r.path) {
			n++
		}
	}
	return n
}

// wait returns when so many requests came.
func (p *proxy) wait(t *testing.T, pattern *regexp.Regexp, atLeast int) {
	t.Helper()
	deadline := time.After(limit)
	for {
		p.mu.Lock()
		n, changed := p.countLocked(pattern), p.changed
		p.mu.Unlock()
		if n >= atLeast {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d of %d requests %s came", n, atLeast, pattern)
		}
	}
}

// layerGets counts the downloads of an image's layers.
func (p *proxy) layerGets(img image) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, r := range p.requests {
		for _, dgst := range img.layerDigests() {
			if r.method == http.MethodGet && strings.HasSuffix(r.path, "/blobs/"+dgst.String()) {
				n++
			}
		}
	}
	return n
}
