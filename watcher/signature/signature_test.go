package signature

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"dtesn-agent/schema/problem"
)

// A hand is somebody who signs.
type hand struct {
	signer ssh.Signer
	public string
}

func newHand(t testing.TB) hand {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return handOf(t, key)
}

func handOf(t testing.TB, key any) hand {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return hand{s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))}
}

func (h hand) armor(t testing.TB, payload, namespace string) string {
	t.Helper()
	sig, err := sshsig.Sign(strings.NewReader(payload), h.signer, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return string(sshsig.Armor(sig))
}

const unsignedCommit = `tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904
author Ada <ada@example.org> 1700000000 +0000
committer Ada <ada@example.org> 1700000000 +0000

a change
`

// withSignature puts armor into a commit as git does.
func withSignature(commit, armor string) string {
	field := "gpgsig " + strings.ReplaceAll(strings.TrimSuffix(armor, "\n"), "\n", "\n ") + "\n"
	return strings.Replace(commit, "\n\n", "\n"+field+"\n", 1)
}

// TestCommit tries the known ways to be fooled. Each row is a commit and the
// allowed signers it is judged by; want is in the error, empty: accepted.
func TestCommit(t *testing.T) {
	ada, eve := newHand(t), newHand(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err) // a library that makes none
	}
	weakHand := handOf(t, small)
	signed := withSignature(unsignedCommit, ada.armor(t, unsignedCommit, "git"))
	other := strings.Replace(unsignedCommit, "4b825", "5b825", 1)
	sha256 := strings.Replace(unsignedCommit, "\n\n", "\ngpgsig-sha256 -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----\n\n", 1)
	trust := func(options string) string {
		return strings.TrimSpace("ada@example.org "+options) + " " + ada.public + "\n"
	}
	rows := map[string]struct{ raw, signers, want string }{
		"good":                            {signed, trust(""), ""},
		"for git by name":                 {signed, trust(`namespaces="git"`), ""},
		"within its time":                 {signed, trust(`valid-after="20200101Z",valid-before="29990101Z"`), ""},
		"a comment and another signer":    {signed, "# people\n\neve " + eve.public + "\n" + trust(""), ""},
		"signed for SHA-256 as well":      {withSignature(sha256, ada.armor(t, unsignedCommit, "git")), trust(""), ""},
		"signed for SHA-256 only":         {sha256, trust(""), "not signed"},
		"signed with the other signature": {withSignature(sha256, ada.armor(t, sha256, "git")), trust(""), "not for these bytes"},
		"two of SHA-256":                  {strings.Replace(signed, "\n\n", "\ngpgsig-sha256 a\ngpgsig-sha256 b\n\n", 1), trust(""), `"gpgsig-sha256" stands twice`},
		"unsigned":                        {unsignedCommit, trust(""), "not signed"},
		"signed by another":               {withSignature(unsignedCommit, eve.armor(t, unsignedCommit, "git")), trust(""), "no allowed signer"},
		"the signature of another commit": {withSignature(other, ada.armor(t, unsignedCommit, "git")), trust(""), "not for these bytes"},
		"made for files":                  {withSignature(unsignedCommit, ada.armor(t, unsignedCommit, "file")), trust(""), `for "file"`},
		"key not for git":                 {signed, trust(`namespaces="file"`), "may not sign for git"},
		"expired":                         {signed, trust(`valid-before="20200101"`), "not valid any more"},
		"not yet valid":                   {signed, trust(`valid-after="29990101"`), "not valid before"},
		"two trees":                       {strings.Replace(signed, "author", "tree 5b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor", 1), trust(""), `"tree" stands twice`},
		"two signatures":                  {withSignature(signed, ada.armor(t, unsignedCommit, "git")), trust(""), `"gpgsig" stands twice`},
		"two committers":                  {strings.Replace(signed, "committer", "committer E <e@x> 1 +0000\ncommitter", 1), trust(""), "stands twice"},
		"a header beside":                 {strings.Replace(signed, "author", "evil yes\nauthor", 1), trust(""), "not for these bytes"},
		"NUL in a header":                 {strings.Replace(signed, "Ada", "A\x00a", 1), trust(""), "NUL"},
		"no message":                      {"tree x\n", trust(""), "no end"},
		"garbage for a signature":         {withSignature(unsignedCommit, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"), trust(""), "cannot be read"},
		"OpenPGP":                         {withSignature(unsignedCommit, "-----BEGIN PGP SIGNATURE-----\nAAAA\n-----END PGP SIGNATURE-----\n"), trust(""), "cannot be read"},
		"a weak key":                      {withSignature(unsignedCommit, weakHand.armor(t, unsignedCommit, "git")), trust(""), "shorter than 2048"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSigners([]byte(row.signers))
			if err != nil {
				t.Fatal(err)
			}
			who, err := s.Commit([]byte(row.raw), time.Now())
			if row.want == "" && (err != nil || who.Name != "ada@example.org" || who.Key != ssh.FingerprintSHA256(ada.signer.PublicKey())) {
				t.Error(who, err)
			}
			isOfLine := strings.Contains(row.want, "not valid") || strings.Contains(row.want, "may not sign")
			if isOfLine && !strings.Contains(problem.Hint(err), "have its line") {
				t.Errorf("the hint is %q", problem.Hint(err))
			}
			if row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want an error with %q", err, row.want)
			}
		})
	}
}

// TestSignersRefused: what is not understood is an error.
func TestSignersRefused(t *testing.T) {
	ada := newHand(t)
	for text, want := range map[string]string{
		"":                                      "no signer",
		"# nobody\n":                            "no signer",
		"ada\n":                                 "no key",
		"ada ssh-ed25519 AAAA\n":                "no key can be read",
		"* " + ada.public:                       "pattern",
		"ada cert-authority " + ada.public:      "cert-authority",
		"ada no-touch-required " + ada.public:   "not understood",
		`ada valid-before="soon" ` + ada.public: "no time",
		"\nada verified=\"x\" " + ada.public:    "line 2",
	} {
		if strings.Contains(want, "no key") || want == "no signer" {
			if _, err := ParseSigners([]byte(text)); !strings.Contains(problem.Hint(err), "NAME [OPTIONS] KEYTYPE KEY") {
				t.Errorf("%q: the hint is %q", text, problem.Hint(err))
			}
		}
		if _, err := ParseSigners([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
	}
}

// TestGit signs with the real git and ssh-keygen, and judges as git does.
func TestGit(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs ssh-keygen")
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@x", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@x")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, &stderr)
		}
		return string(out)
	}
	run("git", "init", "-q", "-b", "main", ".")
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		key := filepath.Join(dir, "id_"+kind)
		run("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key)
		public, err := os.ReadFile(key + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		signers, err := ParseSigners(fmt.Appendf(nil, "%s@example.org %s", kind, public))
		if err != nil {
			t.Fatal(err)
		}
		sign := []string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + key + ".pub"}
		run("git", append(sign, "commit", "-q", "-S", "--allow-empty", "-m", "signed\n\nwith a body\n\n gpgsig not a header")...)
		run("git", append(sign, "tag", "-s", "-m", "release", "v-"+kind)...)
		who, err := signers.Commit([]byte(run("git", "cat-file", "commit", "HEAD")), time.Now())
		if err != nil || who.Name != kind+"@example.org" {
			t.Error(kind, who, err)
		}
		tag := []byte(run("git", "cat-file", "tag", "v-"+kind))
		if who, err := signers.Tag(tag, "v-"+kind, time.Now()); err != nil || who.Name != kind+"@example.org" {
			t.Error(kind, who, err)
		}
		if _, err := signers.Tag(tag, "v-other", time.Now()); err == nil {
			t.Error("a tag was taken under another name")
		}
	}
}
