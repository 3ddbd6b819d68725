package conformance

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/stretchr/testify/require"
)

// credentials is what a client knows about one host.
func credentials(host, user, password string) []session.Attachable {
	return []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(_ context.Context, asked string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
			if asked != host {
				return types.AuthConfig{}, nil
			}
			return types.AuthConfig{Username: user, Password: password, ServerAddress: host}, nil
		},
	})}
}

// basic demands a user and password for everything.
func basic(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		gotUser, gotPassword, ok := r.BasicAuth()
		if ok && gotUser == user && gotPassword == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestBasicCredentialsComeFromTheClient(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, basic("alice", "secret"))
	img := newImage(t, 1, "amd64")
	name := unique("basic-")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))

	opt := exports(push(p.host + "/" + name + ":again"))
	opt.Session = credentials(p.host, "alice", "secret")
	_, _, err := solve(t, c, def, opt)
	require.NoError(t, err)
	require.Equal(t, img.layerDigests(), digests(r.manifest(name, "again").Layers))

	opt = exports(push(p.host + "/" + name + ":wrong"))
	opt.Session = credentials(p.host, "alice", "wrong")
	_, _, err = solve(t, c, def, opt)
	require.Error(t, err)
}

// tokens is a token server and the registry that believes it.
type tokens struct {
	mu     sync.Mutex
	scopes []string
	host   string
}

func (s *tokens) before(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		_ = r.ParseForm()
		user, password, ok := r.BasicAuth()
		if !ok {
			user, password = r.Form.Get("username"), r.Form.Get("password")
		}
		if user != "alice" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		s.mu.Lock()
		for _, scope := range r.Form["scope"] {
			s.scopes = append(s.scopes, strings.Fields(scope)...)
		}
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "the-token", "access_token": "the-token", "expires_in": 300})
		return true
	}
	if r.Header.Get("Authorization") == "Bearer the-token" {
		return false
	}
	scope := ""
	if parts := strings.Split(r.URL.Path, "/"); len(parts) > 3 {
		action := "pull"
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			action = "pull,push"
		}
		scope = `,scope="repository:` + parts[2] + `:` + action + `"`
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+s.host+`/token",service="test"`+scope)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestTokensAreAskedForWithTheClientsCredentials(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	server := &tokens{}
	p := newProxy(t, func(w http.ResponseWriter, r *http.Request) bool { return server.before(w, r) })
	server.host = p.host
	img := newImage(t, 2, "amd64")
	name, target := unique("bearer-"), unique("bearer-target-")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))

	opt := exports(push(p.host + "/" + target + ":v1"))
	opt.Session = credentials(p.host, "alice", "secret")
	_, _, err := solve(t, c, def, opt)
	require.NoError(t, err)
	require.Equal(t, img.layerDigests(), digests(r.manifest(target, "v1").Layers))
	server.mu.Lock()
	defer server.mu.Unlock()
	require.Contains(t, server.scopes, "repository:"+name+":pull")
	require.Contains(t, strings.Join(server.scopes, " "), "repository:"+target+":pull,push")
}

func TestOneClientsCredentialsDoNotServeAnother(t *testing.T) {
	c, r := connect(t), newRegistry(t)
	p := newProxy(t, basic("alice", "secret"))
	img := newImage(t, 1, "amd64")
	name := unique("private-")
	r.push(name, "latest", img)
	def := marshal(t, llb.Image(p.host+"/"+name+":latest"))
	mine := toArchive()
	mine.Session = credentials(p.host, "alice", "secret")
	_, _, err := solve(t, c, def, mine)
	require.NoError(t, err)

	_, _, err = solve(t, c, def, toArchive())

	require.Error(t, err, "a private image was handed to a client that its registry refuses")
}
