package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// sshTransport runs git-upload-pack on the host. A connection serves one listing
// and the fetch that follows from it.
type sshTransport struct {
	at    address
	files Files

	conn    net.Conn // nil at rest
	session *ssh.Session
	in      io.Writer
	out     io.Reader
	adv     *packp.AdvRefs // nil once a pack was requested
}

func newSSH(at address, files Files) (*sshTransport, error) {
	if files.KnownHosts == "" {
		return nil, problem.New("", errors.New("host keys of "+at.host+" cannot be checked without --git-known-hosts-file"), "`"+at.keyscan()+"` prints them; compare them with what the host's administrator says")
	}
	if files.SSHKey == "" {
		return nil, problem.New("", errors.New("--git-ssh-key-file is needed for "+at.String()), "give the private key that may read the repository")
	}
	return &sshTransport{at: at, files: files}, nil
}

func (t *sshTransport) secrets() []string { return nil }

// rest closes the connection. A program that waits for a request is told first,
// so that the host does not log a broken connection.
func (t *sshTransport) rest() {
	if t.conn == nil {
		return
	}
	_ = t.conn.SetDeadline(time.Now().Add(time.Second))
	if t.session != nil && t.adv != nil {
		_, _ = t.in.Write(pktline.FlushPkt)
		_ = t.session.Wait()
	}
	_ = t.conn.Close()
	t.conn, t.session, t.adv = nil, nil, nil
}

func (t *sshTransport) list(c *call, names []string) (Refs, error) {
	t.rest()
	if err := t.start(c); err != nil {
		return nil, err
	}
	return choose(t.adv, names), nil
}

func (t *sshTransport) fetch(c *call, w Want, take func(io.Reader) error) (response, error) {
	if t.adv == nil {
		t.rest()
		if err := t.start(c); err != nil {
			return response{}, err
		}
	}
	stop := context.AfterFunc(c.ctx, closing(t.conn))
	defer stop()
	q, err := newRequest(capabilitiesOf(t.adv), w)
	if err != nil {
		return response{}, err
	}
	t.adv = nil
	if _, err := t.in.Write(q.body); err != nil {
		return response{}, err
	}
	resp, err := q.read(c.reader(t.out, maxPack, "the response"), take)
	t.rest()
	return resp, err
}

// closing closes a connection. Nothing less ends what waits for a host that
// does not respond.
func closing(conn net.Conn) func() { return func() { _ = conn.Close() } }

// start connects, starts git-upload-pack and reads its advertisement.
func (t *sshTransport) start(c *call) error {
	conf, err := t.config()
	if err != nil {
		return err
	}
	addr := t.at.hostPort("22")
	if t.conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(c.ctx, "tcp", addr); err != nil {
		t.conn = nil
		return err
	}
	stop := context.AfterFunc(c.ctx, closing(t.conn))
	defer stop()
	_ = t.conn.SetDeadline(time.Now().Add(20 * time.Second)) // for the handshake
	conn, chans, reqs, err := ssh.NewClientConn(t.conn, addr, conf)
	if err != nil {
		return err
	}
	_ = t.conn.SetDeadline(time.Time{})
	s, err := ssh.NewClient(conn, chans, reqs).NewSession()
	if err != nil {
		return err
	}
	in, errIn := s.StdinPipe()
	out, errOut := s.StdoutPipe()
	stderr := &tail{}
	s.Stderr = stderr
	if err := errors.Join(errIn, errOut, s.Start("git-upload-pack "+quote(t.at.path))); err != nil {
		return err
	}
	t.session, t.in, t.out = s, in, bufio.NewReader(&explained{out, s, stderr})
	t.adv, err = readAdvertisement(c.reader(t.out, maxListing, "the list of refs"))
	return err
}

func (t *sshTransport) config() (*ssh.ClientConfig, error) {
	key, err := readSecret(t.files.SSHKey)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if t.files.SSHPassphrase == "" {
			return nil, problem.New("", errors.New(t.files.SSHKey+" is locked by a passphrase"), "give it with --git-ssh-passphrase-file")
		}
		phrase, errRead := readLine(t.files.SSHPassphrase)
		if errRead != nil {
			return nil, errRead
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(key, []byte(phrase))
	}
	switch {
	case errors.Is(err, x509.IncorrectPasswordError):
		return nil, problem.New("", errors.New("the passphrase in "+t.files.SSHPassphrase+" does not open "+t.files.SSHKey), "both files are read again at the next try")
	case err != nil:
		return nil, &problem.Error{Op: "use the SSH key in", Place: t.files.SSHKey, Err: err, Hint: "it must be the private half, in OpenSSH's or PEM format"}
	}
	if _, err := readSecret(t.files.KnownHosts); err != nil {
		return nil, err
	}
	if text, _ := smallfile.Read(t.files.KnownHosts, maxSecret); bytes.HasPrefix(text, smallfile.BOM) { // the library would not know the first host
		return nil, problem.New("", errors.New(t.files.KnownHosts+" begins with a byte order mark"), "save it as UTF-8 without one")
	}
	db, err := knownhosts.NewDB(t.files.KnownHosts)
	if err != nil {
		return nil, &problem.Error{Op: "read host keys from", Place: t.files.KnownHosts, Err: err, Hint: "its lines are those of ssh-keyscan"}
	}
	return &ssh.ClientConfig{
		User: t.user(), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: db.HostKeyCallback(), HostKeyAlgorithms: db.HostKeyAlgorithms(t.at.hostPort("22")),
		ClientVersion: "SSH-2.0-" + agent,
	}, nil
}

// user returns who logs in: git, as hosts have it, where the address has none.
func (t *sshTransport) user() string {
	if t.at.user != "" {
		return t.at.user
	}
	return "git"
}

func (t *sshTransport) explain(err error) error {
	switch {
	case knownhosts.IsHostKeyChanged(err):
		return problem.New("", errors.New("the host key differs from the one in "+t.files.KnownHosts), "somebody may intercept the connection; if the host really has a new key, put that into the file")
	case knownhosts.IsHostUnknown(err):
		return problem.New("", errors.New(t.files.KnownHosts+" has no key of "+t.at.hostPort("22")), "`"+t.at.keyscan()+"` prints it; compare it with what the host's administrator says")
	case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
		return problem.New("", fmt.Errorf("SSH authentication failed for user %s with key %s", t.user(), t.files.SSHKey), "check the user, and that the public half of the key may read this repository")
	}
	return nil
}

// quote makes path one word of a shell on the host.
func quote(path string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(path) + "'"
}

// tail keeps the beginning of what a host writes to stderr.
type tail struct {
	text [200]byte
	n    int
}

func (t *tail) Write(b []byte) (int, error) {
	t.n += copy(t.text[t.n:], b)
	return len(b), nil
}

// explained turns the end of a session into the error that its stderr names.
type explained struct {
	io.Reader
	s      *ssh.Session
	stderr *tail
}

func (e *explained) Read(b []byte) (int, error) {
	n, err := e.Reader.Read(b)
	if n == 0 && errors.Is(err, io.EOF) {
		var exit *ssh.ExitError
		if !errors.As(e.s.Wait(), &exit) {
			return n, err // the connection was cut
		}
		if text := line(string(e.stderr.text[:e.stderr.n])); text != "" {
			return 0, &serverError{text}
		}
	}
	return n, err
}
