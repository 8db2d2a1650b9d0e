package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"dtesn-agent/test/gitserver"
)

var endpoint = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)

// get asks the agent's HTTP endpoint.
func (f *follower) get(path string) string {
	f.t.Helper()
	log, err := os.ReadFile(f.log)
	ok(f.t, err)
	all := endpoint.FindAllString(string(log), -1)
	if len(all) == 0 {
		f.t.Fatalf("the agent does not say where it listens:\n%s", log)
	}
	// the last that follows an agent's first line; errors may name others
	for i := len(all) - 1; i >= 0; i-- {
		resp, err := http.Get(all[i] + path)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.Header.Get("Content-Type") != "" && resp.StatusCode == http.StatusOK {
			return string(body)
		}
	}
	f.t.Fatalf("the agent does not answer %s", path)
	return ""
}

// noTrace holds that secrets, each by its name, are in no log, answer or
// record.
func (f *follower) noTrace(secrets map[string]string) {
	f.t.Helper()
	evidence := map[string]string{}
	for _, path := range []string{"/", "/metrics", "/v1/config/status", "/v1/config/health", "/v1/config/snapshots"} {
		evidence["GET "+path] = f.get(path)
	}
	_, evidence["agent status"] = agent("status", "--state", f.state)
	_, evidence["agent status --json"] = agent("status", "--state", f.state, "--json")
	evidence["history"] = gitserver.Git(f.t, f.dir, "--git-dir", filepath.Join(f.state, "snapshots.git"), "log", "-p", "--all")
	log, err := os.ReadFile(f.log)
	ok(f.t, err)
	evidence["log"] = string(log)
	ok(f.t, filepath.WalkDir(f.state, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			body, err := os.ReadFile(path)
			evidence[path] = string(body)
			return err
		}
		return err
	}))
	if !strings.Contains(evidence["GET /v1/config/status"], "config.git") || !strings.Contains(evidence["agent status"], "config.git") {
		f.t.Error("the status that is searched for secrets does not even name the repository")
	}
	for name, secret := range secrets {
		for where, text := range evidence {
			if strings.Contains(text, secret) {
				f.t.Errorf("the %s is in %s", name, where)
			}
		}
	}
}

// rotate writes a file by a rename, as secrets are rotated.
func rotate(t testing.TB, path, text string) {
	t.Helper()
	ok(t, os.WriteFile(path+".new", []byte(text), 0o600))
	ok(t, os.Rename(path+".new", path))
}

// says has the agent look, and waits until it says why it cannot read.
func (f *follower) says(words ...string) {
	f.t.Helper()
	f.sync()
	f.await(fmt.Sprintf("it is said: %q", words), func(v view) bool {
		for _, w := range words {
			if !strings.Contains(v.Source.LastError+"\n"+v.Source.Hint, w) {
				return false
			}
		}
		return true
	})
}

// secretLine is a line from the middle of a PEM file.
func secretLine(pem string) string {
	lines := strings.Split(strings.TrimSpace(pem), "\n")
	return lines[len(lines)/2]
}

// TestGitSecretsHTTPS: one agent that is never restarted meets each secret
// wrong, right, and rotated on the server; none of them leaves a trace.
func TestGitSecretsHTTPS(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	f := newFollower(t)
	const old, fresh = "canary-old-7d1b", "canary-new-90ac"
	var password atomic.Value
	password.Store(old)
	pki := filepath.Join(f.dir, "pki")
	ok(t, os.Mkdir(pki, 0o700))
	server, server2 := gitserver.NewCert(t, pki, "server"), gitserver.NewCert(t, pki, "server2")
	client, client2 := gitserver.NewCert(t, pki, "client"), gitserver.NewCert(t, pki, "client2")
	host := gitserver.HTTPS(t, f.dir, server, client, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if user, given, _ := q.BasicAuth(); user != "ada" || given != password.Load() {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", given)) // it tells what it was given
				http.Error(w, "not "+given, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	file := func(name string) string { return filepath.Join(pki, name) }
	ca, cert, key, user, pass := file("ca.pem"), file("cert.pem"), file("key.pem"), file("user"), file("password")
	rotate(t, ca, string(server2.CertBytes))
	rotate(t, cert, string(client2.CertBytes))
	rotate(t, key, string(client2.KeyText))
	rotate(t, user, "eve\n")
	rotate(t, pass, old)
	f.start(host.URL+"/config.git", "--poll", "24h", "--git-ca-file", ca, "--git-cert-file", cert, "--git-key-file", key, "--git-username-file", user, "--git-password-file", pass)
	f.await("the agent runs", func(view) bool { return true })
	f.says("signed by an unknown authority", "--git-ca-file")
	rotate(t, ca, string(server.KeyText)) // what is none
	f.says("holds no certificate")
	rotate(t, ca, string(server.CertBytes))
	f.says("certificate") // the client's
	rotate(t, key, string(client.KeyText))
	f.says("belong together")
	rotate(t, cert, string(client.CertBytes))
	f.says("401", "wrong, expired")
	rotate(t, user, "ada\n")
	f.sync() // after so many failures it would come by itself within a minute
	f.runs(1)

	// each is rotated on the server, then here
	f.commit(2)
	password.Store(fresh)
	f.push()
	f.says("401", "may not read this repository")
	rotate(t, pass, fresh+"\r\n")
	f.runs(2)
	f.commit(3)
	host.Rotate(server2, client)
	f.push()
	f.says("signed by an unknown authority")
	rotate(t, ca, string(server.CertBytes)+string(server2.CertBytes))
	f.runs(3)
	f.commit(4)
	host.Rotate(server2, client2)
	f.push()
	f.says("certificate")
	rotate(t, cert, string(client2.CertBytes))
	rotate(t, key, string(client2.KeyText))
	f.sync()
	f.runs(4)
	ok(t, os.Remove(pass))
	f.says(pass, "no such file")
	rotate(t, pass, fresh)
	f.declare(5)
	f.sync()
	f.runs(5)
	f.noTrace(map[string]string{
		"password": old, "new password": fresh, "client's key": secretLine(string(client.KeyText)),
		"new client's key": secretLine(string(client2.KeyText)), "key in place of a certificate": secretLine(string(server.KeyText)),
	})
}

// TestGitSecretsSSH is the same for SSH: host keys, a key, its passphrase.
func TestGitSecretsSSH(t *testing.T) {
	t.Parallel()
	needs(t, "git", "ssh-keygen")
	f := newFollower(t)
	host := gitserver.SSH(t, f.bare, "AcceptEnv GIT_PROTOCOL")
	const phrase, phrase2 = "canary phrase 41c7", "canary phrase d20e"
	dir := filepath.Join(f.dir, "ssh")
	ok(t, os.Mkdir(dir, 0o700))
	file := func(name string) string { return filepath.Join(dir, name) }
	keyText := func(name string) string { b, err := os.ReadFile(file(name)); ok(t, err); return string(b) }
	public, public2 := lockedKey(t, file("first"), phrase), lockedKey(t, file("second"), phrase2)
	stranger := gitserver.NewKey(t, file("stranger"), "")
	rotate(t, filepath.Join(host.Dir, "authorized"), public+"\n")
	hosts, err := os.ReadFile(host.KnownHosts)
	ok(t, err)

	code, said, _ := f.once(host.URL, "--config", "config", "--git-ssh-key-file", host.Key)
	if code != 2 || !strings.Contains(said, "cannot be checked without --git-known-hosts-file") {
		t.Errorf("without known hosts: exit %d: %s", code, said)
	}
	key, known, pass := file("key"), file("known"), file("pass")
	rotate(t, key, keyText("first"))
	rotate(t, pass, phrase+"\n")
	rotate(t, known, "example.org "+stranger+"\n")
	f.start(host.URL, "--poll", "24h", "--git-ssh-key-file", key, "--git-ssh-passphrase-file", pass, "--git-known-hosts-file", known)
	f.await("the agent runs", func(view) bool { return true })
	f.says("has no key of 127.0.0.1:"+host.Port, "ssh-keyscan -p "+host.Port)
	rotate(t, known, fmt.Sprintf("[127.0.0.1]:%s %s\n", host.Port, stranger))
	f.says("the host key differs from", "somebody may intercept")
	ok(t, os.Remove(known))
	f.says(known, "no such file")
	rotate(t, pass, phrase2)
	rotate(t, known, string(hosts))
	f.says("does not open " + key)
	rotate(t, pass, phrase)
	f.sync() // after so many failures it would come by itself within a minute
	f.runs(1)

	rotate(t, filepath.Join(host.Dir, "authorized"), public2+"\n")
	rotate(t, known, string(hosts)+"# read again\n") // so that the connection is a new one
	f.commit(2)
	f.push()
	f.says("SSH authentication failed", "with key "+key)
	rotate(t, key, keyText("second"))
	f.says("does not open " + key)
	rotate(t, pass, phrase2+"\n")
	f.sync()
	f.runs(2)
	f.noTrace(map[string]string{
		"passphrase": phrase, "new passphrase": phrase2, "key": secretLine(keyText("first")), "new key": secretLine(keyText("second")),
	})
}

// lockedKey makes a key that is quick to unlock, and returns its public line.
func lockedKey(t *testing.T, path, phrase string) string {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", phrase, "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	public, err := os.ReadFile(path + ".pub")
	ok(t, err)
	return strings.TrimSpace(string(public))
}
