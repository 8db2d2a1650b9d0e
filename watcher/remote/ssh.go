package remote

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"dtesn-agent/schema/problem"
)

// sshTransport runs git-upload-pack on the host, each time in a session of one
// connection that is kept.
type sshTransport struct {
	at    address
	files Files

	client *ssh.Client
	conn   net.Conn // what it runs over
	// trust is the digest of the files that the connection was made with.
	trust [sha256.Size]byte
}

func (t *sshTransport) close() {
	if t.client != nil {
		_ = t.conn.Close()
		t.client, t.conn = nil, nil
	}
}

func (t *sshTransport) open(b bounds, _ bool) (exchange, error) {
	kept := t.client != nil
	ex, err := t.session(b)
	if err != nil && kept {
		// the host may have closed the connection since
		t.close()
		ex, err = t.session(b)
	}
	return ex, err
}

// session begins a session. Whatever the host does or leaves undone, the end of
// b ends it: nothing but closing the connection does that for sure.
func (t *sshTransport) session(b bounds) (ex exchange, err error) {
	if err := t.connect(b.ctx); err != nil {
		return nil, err
	}
	conn := t.conn
	abort := func() { _ = conn.Close() }
	stop := context.AfterFunc(b.ctx, abort)
	defer func() {
		if err != nil {
			stop()
		}
	}()
	s, err := t.client.NewSession()
	if err != nil {
		return nil, err
	}
	in, errIn := s.StdinPipe()
	out, errOut := s.StdoutPipe()
	said := &tail{}
	s.Stderr = said
	_ = s.Setenv("GIT_PROTOCOL", "version=2") // a host that does not take it speaks version 0
	err = errors.Join(errIn, errOut)
	if err == nil {
		err = s.Start("git-upload-pack " + quote(t.at.path))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return newStream(b, in, &explained{out, s, said}, s.Close, abort, stop), nil
}

// connect makes the connection, where there is none or a file has changed.
func (t *sshTransport) connect(ctx context.Context) error {
	key, err := readSecret(t.files.SSHKey)
	if err != nil {
		return err
	}
	hosts, err := readSecret(t.files.KnownHosts)
	if err != nil {
		return err
	}
	var phrase []byte
	if t.files.SSHPassphrase != "" {
		if phrase, err = readSecret(t.files.SSHPassphrase); err != nil {
			return err
		}
		phrase = []byte(strings.TrimRight(string(phrase), "\r\n"))
	}
	digest := sha256.Sum256(fmt.Appendf(nil, "%x %x %x", sha256.Sum256(key), sha256.Sum256(hosts), sha256.Sum256(phrase)))
	if t.client != nil && digest == t.trust {
		return nil
	}
	t.close()
	conf, err := t.config(key, phrase)
	if err != nil {
		return err
	}
	addr := t.at.hostPort("22")
	conn, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // for the handshake
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c, chans, reqs, err := ssh.NewClientConn(conn, addr, conf)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	_ = conn.SetDeadline(time.Time{})
	t.client, t.conn, t.trust = ssh.NewClient(c, chans, reqs), conn, digest
	return nil
}

func (t *sshTransport) config(key, phrase []byte) (*ssh.ClientConfig, error) {
	signer, err := ssh.ParsePrivateKey(key)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if phrase == nil {
			return nil, problem.New("", errors.New(t.files.SSHKey+" is locked by a passphrase"), "give it with --git-ssh-passphrase-file")
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(key, phrase)
	}
	switch {
	case errors.Is(err, x509.IncorrectPasswordError):
		return nil, problem.New("", errors.New("the passphrase in "+t.files.SSHPassphrase+" does not open "+t.files.SSHKey), "both files are read anew at the next try")
	case err != nil:
		return nil, &problem.Error{Op: "use the SSH key in", Place: t.files.SSHKey, Err: err, Hint: "it must be the private half, in OpenSSH's or PEM format"}
	}
	db, err := knownhosts.NewDB(t.files.KnownHosts)
	if err != nil {
		return nil, &problem.Error{Op: "read host keys from", Place: t.files.KnownHosts, Err: err, Hint: "its lines are those of ssh-keyscan"}
	}
	addr := t.at.hostPort("22")
	return &ssh.ClientConfig{
		User: t.user(), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: db.HostKeyCallback(), HostKeyAlgorithms: db.HostKeyAlgorithms(addr),
		ClientVersion: "SSH-2.0-" + agent,
	}, nil
}

// user is who logs in; git, as the hosts have it, where the address says nothing.
func (t *sshTransport) user() string {
	if t.at.user != "" {
		return t.at.user
	}
	return "git"
}

func (t *sshTransport) secrets() []string { return nil }

func (t *sshTransport) explain(err error) error {
	switch {
	case knownhosts.IsHostKeyChanged(err):
		return problem.New("", errors.New("the host shows another key than "+t.files.KnownHosts+" has"), "somebody may be in between; if the host really has a new key, put that into the file")
	case knownhosts.IsHostUnknown(err):
		return problem.New("", errors.New(t.files.KnownHosts+" has no key of "+t.at.hostPort("22")), "`"+t.at.keyscan()+"` prints it; compare it with what the host's administrator says")
	case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
		return problem.New("", fmt.Errorf("the host does not let the user %s in with the key in %s", t.user(), t.files.SSHKey), "is that the user, and is its public half allowed to read this repository? the file is read anew at the next try")
	}
	return nil
}

// quote is one word of a shell on the host.
func quote(path string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(path) + "'"
}

// tail keeps the beginning of what a host says on stderr.
type tail struct {
	text [200]byte
	n    int
}

func (t *tail) Write(b []byte) (int, error) {
	t.n += copy(t.text[t.n:], b)
	return len(b), nil
}

// explained turns the silent end of a session into what stderr said.
type explained struct {
	io.Reader
	s    *ssh.Session
	said *tail
}

func (e *explained) Read(b []byte) (int, error) {
	n, err := e.Reader.Read(b)
	if n == 0 && errors.Is(err, io.EOF) {
		_ = e.s.Wait()
		if text := line(e.said.text[:e.said.n]); text != "" {
			return 0, &serverError{text}
		}
	}
	return n, err
}
