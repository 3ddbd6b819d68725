package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// web is a server of one file that notes what it is asked.
type web struct {
	*httptest.Server
	mu       sync.Mutex
	text     string
	etag     string
	header   http.Header
	requests []*http.Request
	sent     int
}

func newWeb(t *testing.T, text string) *web {
	t.Helper()
	w := &web{text: text, etag: `"one"`, header: http.Header{}}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.requests = append(w.requests, r)
		if r.URL.Path == "/moved" {
			http.Redirect(rw, r, "/dir/file.txt", http.StatusFound)
			return
		}
		if r.URL.Path == "/missing" {
			http.NotFound(rw, r)
			return
		}
		for k, v := range w.header {
			rw.Header()[k] = v
		}
		if w.etag != "" {
			rw.Header().Set("ETag", w.etag)
			if strings.Contains(r.Header.Get("If-None-Match"), w.etag) {
				rw.WriteHeader(http.StatusNotModified)
				return
			}
		}
		if r.Method == http.MethodGet {
			w.sent++
			_, _ = io.WriteString(rw, w.text)
		}
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *web) bodies() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

func fetchHTTP(t *testing.T, c *client.Client, state llb.State, attach ...session.Attachable) (string, error) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	opt := exports(toDir(out))
	opt.Session = attach
	_, _, err := solve(t, c, marshal(t, state), opt)
	return out, err
}

func TestHTTPFileIsAsTheServerSays(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	w.header.Set("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
	out, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/dir/file.txt"))
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(out, "file.txt"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.Equal(t, int64(1445412480), info.ModTime().Unix())

	w.header.Set("Content-Disposition", `attachment; filename="../named by server"`)
	w.etag = `"two"`
	out, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/dir/file.txt", llb.Chmod(0o755)))
	require.NoError(t, err)
	require.Equal(t, []string{"-rwxr-xr-x named by server text"}, tree(t, out))

	out, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/moved", llb.Filename("mine")))
	require.NoError(t, err)
	require.Equal(t, []string{"-rw------- mine text"}, tree(t, out))
}

func TestHTTPFileHasTheOwnerTheModeAndTheHeadersThatAreAskedFor(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	get := func(options ...llb.HTTPOption) *tar.Header {
		t.Helper()
		a := newArchive()
		state := llb.HTTP(w.URL+"/file", options...)
		_, _, err := solve(t, c, marshal(t, state), exports(client.ExportEntry{Type: client.ExporterTar, Output: a.open}))
		require.NoError(t, err)
		headers, _ := entriesOf(t, a.Bytes())
		require.Len(t, headers, 1)
		return headers[0]
	}
	header := get()
	require.Equal(t, []int{0, 0, 0o600}, []int{header.Uid, header.Gid, int(header.Mode)})
	header = get(llb.Chown(7, 8), llb.Chmod(0o751))
	require.Equal(t, []int{7, 8, 0o751}, []int{header.Uid, header.Gid, int(header.Mode)})

	w.mu.Lock()
	w.etag, w.requests = `"two"`, nil
	w.mu.Unlock()
	get(llb.Header(llb.HTTPHeader{Accept: "text/x-test", UserAgent: "tester/1"}))
	w.mu.Lock()
	defer w.mu.Unlock()
	require.NotEmpty(t, w.requests)
	for _, r := range w.requests {
		require.Equal(t, []string{"text/x-test", "tester/1"}, []string{r.Header.Get("Accept"), r.Header.Get("User-Agent")}, r.Method)
	}
}

func TestHTTPFileThatComesInGzipIsWhatItWasBefore(t *testing.T) {
	c := connect(t)
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, err := zip.Write([]byte("text"))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	w := newWeb(t, packed.String())
	w.header.Set("Content-Encoding", "gzip")
	out, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/file", llb.Checksum(digest.FromString("text"))))
	require.NoError(t, err)
	require.Equal(t, []string{"-rw------- file text"}, tree(t, out))

	w.text, w.etag = w.text[:len(w.text)-10], `"two"`
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/file"))
	require.Error(t, err)
}

func TestHTTPSameFileIsNotSentAgain(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "first")
	for range 3 {
		_, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/file"))
		require.NoError(t, err)
	}
	require.Equal(t, 1, w.bodies())
	w.mu.Lock()
	w.text, w.etag = "second", `W/"two"`
	w.mu.Unlock()
	out, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/file"))
	require.NoError(t, err)
	require.Equal(t, []string{"-rw------- file second"}, tree(t, out))
	require.Equal(t, 2, w.bodies())
	w.mu.Lock()
	w.etag = ""
	w.mu.Unlock()
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/file"))
	require.NoError(t, err)
	require.Equal(t, 3, w.bodies(), "without a validator it has to be read")
}

func TestHTTPChecksum(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	want := llb.Checksum(digest.FromString("text"))
	out, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/file", want))
	require.NoError(t, err)
	require.Equal(t, []string{"-rw------- file text"}, tree(t, out))
	before := w.bodies()
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/file", want))
	require.NoError(t, err)
	require.Equal(t, before, w.bodies(), "a pinned file that is here is not asked for")
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/file", llb.Checksum(digest.FromString("other"))))
	require.ErrorContains(t, err, "digest mismatch")
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/missing"))
	require.ErrorContains(t, err, "404")
}

func TestHTTPSecretsAuthorise(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	w.etag = ""
	secrets := secretsprovider.FromMap(map[string][]byte{
		"HTTP_AUTH_TOKEN_127.0.0.1": []byte("token"),
		"mine":                      []byte("Basic xyz"),
	})
	_, err := fetchHTTP(t, c, llb.HTTP(w.URL+"/file"), secrets)
	require.NoError(t, err)
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/moved", llb.AuthHeaderSecret("mine")), secrets)
	require.NoError(t, err)
	var seen []string
	for _, r := range w.requests {
		seen = append(seen, r.Header.Get("Authorization"))
	}
	require.Equal(t, []string{"Bearer token", "Basic xyz", "Basic xyz"}, seen)
	_, err = fetchHTTP(t, c, llb.HTTP(w.URL+"/file", llb.AuthHeaderSecret("none")), secrets)
	require.ErrorContains(t, err, "none")
}

func TestHTTPSecretsStayWithTheirServer(t *testing.T) {
	thunkOnly(t, "it compares hosts without their ports")
	c := connect(t)
	target := newWeb(t, "text")
	var first string
	source := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		first = r.Header.Get("Authorization")
		http.Redirect(rw, r, target.URL+"/file", http.StatusFound)
	}))
	t.Cleanup(source.Close)
	secrets := secretsprovider.FromMap(map[string][]byte{"mine": []byte("Basic xyz")})
	out, err := fetchHTTP(t, c, llb.HTTP(source.URL+"/file", llb.AuthHeaderSecret("mine")), secrets)
	require.NoError(t, err)
	require.Equal(t, []string{"-rw------- file text"}, tree(t, out))
	require.Equal(t, "Basic xyz", first)
	require.Empty(t, target.requests[0].Header.Get("Authorization"))
}

func TestHTTPUploadOfTheClient(t *testing.T) {
	c := connect(t)
	uploads := uploadprovider.New()
	url := uploads.Add(io.NopCloser(strings.NewReader(strings.Repeat("large", 1<<20))))
	out, err := fetchHTTP(t, c, llb.HTTP(url, llb.Filename("up")), uploads)
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(out, "up"))
	require.NoError(t, err)
	require.EqualValues(t, 5<<20, info.Size())
}

func TestHTTPMetadataForFrontends(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	w.header.Set("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
	_, err := c.Build(testContext(t), client.SolveOpt{}, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		source := &pb.SourceOp{Identifier: w.URL + "/file.txt"}
		md, err := c.ResolveSourceMetadata(ctx, source, sourceresolver.Opt{})
		if err != nil {
			return nil, err
		}
		require.Equal(t, digest.FromString("text"), md.HTTP.Digest)
		require.Equal(t, "file.txt", md.HTTP.Filename)
		require.Equal(t, time.Unix(1445412480, 0).UTC(), md.HTTP.LastModified.UTC())
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
	require.Equal(t, 1, w.bodies())
}

// told is what a frontend sees of a file, before and in the build that it makes of it.
func told(ctx context.Context, t *testing.T, c gateway.Client, url string, secret string) (digest.Digest, string, error) {
	t.Helper()
	source := &pb.SourceOp{Identifier: url, Attrs: map[string]string{pb.AttrHTTPFilename: "file"}}
	options := []llb.HTTPOption{llb.Filename("file")}
	if secret != "" {
		source.Attrs[pb.AttrHTTPAuthHeaderSecret] = secret
		options = append(options, llb.AuthHeaderSecret(secret))
	}
	md, err := c.ResolveSourceMetadata(ctx, source, sourceresolver.Opt{})
	if err != nil {
		return "", "", err
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: marshal(t, llb.HTTP(url, options...)).ToPB(), Evaluate: true})
	if err != nil {
		return "", "", err
	}
	ref, err := res.SingleRef()
	require.NoError(t, err)
	text, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "file"})
	return md.HTTP.Digest, string(text), err
}

func TestHTTPFileIsSentOnceForAFrontendAndItsBuild(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	uploads := uploadprovider.New()
	// Can be read once.
	upload := uploads.Add(io.NopCloser(strings.NewReader("from the client")))
	opt := client.SolveOpt{Session: []session.Attachable{uploads}}
	_, err := c.Build(testContext(t), opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		for url, text := range map[string]string{w.URL + "/file": "text", upload: "from the client"} {
			found, read, err := told(ctx, t, c, url, "")
			if err != nil {
				return nil, err
			}
			require.Equal(t, digest.FromString(text), found)
			require.Equal(t, text, read)
		}
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
	require.Len(t, w.requests, 1)
}

func TestHTTPFileOfOneBuildIsNotToldToAnother(t *testing.T) {
	c := connect(t)
	w := newWeb(t, "text")
	guarded := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Basic xyz" {
			http.Error(rw, "who is it?", http.StatusUnauthorized)
			return
		}
		w.Config.Handler.ServeHTTP(rw, r)
	}))
	t.Cleanup(guarded.Close)
	build := func(value string, then func()) error {
		opt := client.SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"mine": []byte(value)})}}
		_, err := c.Build(testContext(t), opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			found, read, err := told(ctx, t, c, guarded.URL+"/file", "mine")
			if err != nil {
				return nil, err
			}
			require.Equal(t, digest.FromString("text"), found)
			require.Equal(t, "text", read)
			then()
			return gateway.NewResult(), nil
		}, nil)
		return err
	}
	require.NoError(t, build("Basic xyz", func() {
		require.ErrorContains(t, build("Basic abc", func() {}), "401")
		require.NoError(t, build("Basic xyz", func() {}))
	}))
	require.Equal(t, 1, w.bodies())
	require.Len(t, w.requests, 2, "one of each build that may")
}
