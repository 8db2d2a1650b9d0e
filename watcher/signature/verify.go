package signature

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"dtesn-agent/schema/problem"
)

// A Signer is who signed.
type Signer struct {
	Name string // the principal of the allowed signers file
	Key  string // SHA256:… of the key
}

// ErrUnsigned says that an object bears no signature at all.
var ErrUnsigned = errors.New("it is not signed")

const (
	header    = "gpgsig"
	other     = "gpgsig-sha256" // of the same commit in a SHA-256 repository
	armorHead = "-----BEGIN SSH SIGNATURE-----"
)

// Commit judges the raw bytes of a commit object: who signed it, if that is
// somebody who may at now.
func (s *Signers) Commit(raw []byte, now time.Time) (Signer, error) {
	payload, armored, err := splitCommit(raw)
	if err != nil {
		return Signer{}, err
	}
	return s.verify(payload, armored, now)
}

// Tag judges the raw bytes of a tag object, which must bear the name that it
// was found under.
func (s *Signers) Tag(raw []byte, name string, now time.Time) (Signer, error) {
	fields, err := headers(raw)
	if err != nil {
		return Signer{}, err
	}
	if fields["tag"] != name {
		return Signer{}, fmt.Errorf("it was made under the name %.80q and stands under %.80q", fields["tag"], name)
	}
	at := bytes.Index(raw, []byte("\n"+armorHead))
	if at < 0 {
		return Signer{}, unsigned(raw)
	}
	return s.verify(raw[:at+1], raw[at+1:], now)
}

func (s *Signers) verify(payload, armored []byte, now time.Time) (Signer, error) {
	sig, err := sshsig.Unarmor(armored)
	if err != nil {
		return Signer{}, fmt.Errorf("its signature cannot be read: %w", err)
	}
	if sig.Namespace != namespace {
		return Signer{}, fmt.Errorf("its signature was made for %.40q, not for git", sig.Namespace)
	}
	if sig.Signature.Format == ssh.KeyAlgoRSA { // "ssh-rsa" as a signature is SHA-1
		return Signer{}, errors.New("its signature uses SHA-1")
	}
	if err := weak(sig.PublicKey); err != nil {
		return Signer{}, err
	}
	name, err := s.find(ssh.FingerprintSHA256(sig.PublicKey), now)
	if err != nil {
		return Signer{}, err
	}
	if err := sshsig.Verify(bytes.NewReader(payload), sig, sig.PublicKey, sig.HashAlgorithm, namespace); err != nil {
		return Signer{}, fmt.Errorf("its signature is not for these bytes: %w", err)
	}
	return Signer{Name: name, Key: ssh.FingerprintSHA256(sig.PublicKey)}, nil
}

// splitCommit takes the signature out of a commit: gitformat-signature(5).
// What was signed is the object without that header and the one for SHA-256.
func splitCommit(raw []byte) (payload, armored []byte, err error) {
	if _, err := headers(raw); err != nil {
		return nil, nil, err
	}
	head, body, _ := bytes.Cut(raw, []byte("\n\n"))
	var kept, sig, dropped bytes.Buffer
	to := &kept
	for line := range bytes.Lines(append(head[:len(head):len(head)], '\n')) {
		name, value, _ := bytes.Cut(line, []byte(" "))
		switch {
		case string(name) == header:
			to, line = &sig, value
		case string(name) == other:
			to = &dropped
		case len(name) > 0:
			to = &kept
		case to == &sig:
			line = value
		}
		to.Write(line)
	}
	if sig.Len() == 0 {
		return nil, nil, unsigned(raw)
	}
	kept.WriteByte('\n')
	kept.Write(body)
	return kept.Bytes(), sig.Bytes(), nil
}

// unsigned words why there is no SSH signature.
func unsigned(raw []byte) error {
	if bytes.Contains(raw, []byte("-----BEGIN PGP")) || bytes.Contains(raw, []byte("-----BEGIN SIGNED")) {
		return problem.New("", errors.New("it is signed by OpenPGP or X.509; SSH signatures are read"), "sign it with SSH: git config gpg.format ssh")
	}
	return ErrUnsigned
}

// headers are the fields of an object before its message. A field that git
// writes once and that stands twice is an error: git reads the first, others
// the last.
func headers(raw []byte) (map[string]string, error) {
	head, _, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		return nil, errors.New("it has no end of its headers")
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return nil, errors.New("its headers hold a NUL")
	}
	fields := map[string]string{}
	name := ""
	for line := range strings.SplitSeq(string(head), "\n") {
		if strings.HasPrefix(line, " ") {
			if name == "" {
				return nil, errors.New("its first header continues nothing")
			}
			continue
		}
		var value string
		name, value, _ = strings.Cut(line, " ")
		if _, twice := fields[name]; twice && name != "parent" && name != "mergetag" {
			return nil, fmt.Errorf("its header %.40q stands twice", name)
		}
		fields[name] = value
	}
	return fields, nil
}
