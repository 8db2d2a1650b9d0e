// Package signature judges SSH signatures of git commits and tags against a
// file of allowed signers, as `git verify-commit` does with
// gpg.ssh.allowedSignersFile, and more strictly:
//
//   - an object whose headers repeat, or are in none of git's forms, is refused,
//     for two readers could take it for two things;
//   - signatures by SHA-1 and keys that are too weak are refused;
//   - a key counts while it is valid now, not at the date that a commit claims;
//   - what is not understood in the file of allowed signers is an error.
package signature

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"dtesn-agent/schema/problem"
)

// namespace is what git signs for: gitformat-signature(5).
const namespace = "git"

// minRSA is the least size of an RSA key in bits.
const minRSA = 2048

// Signers are who may sign.
type Signers struct{ lines []entry }

// An entry is a line of an allowed signers file: ssh-keygen(1), "ALLOWED
// SIGNERS".
type entry struct {
	line          int
	principals    string
	key           ssh.PublicKey
	namespaces    []string // empty: all
	after, before time.Time
}

// ParseSigners reads the text of an allowed signers file. The error names the
// line.
func ParseSigners(text []byte) (*Signers, error) {
	s := &Signers{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		e.line = n
		s.lines = append(s.lines, e)
	}
	if len(s.lines) == 0 {
		return nil, problem.New("", errors.New("it names no signer"), lineHint)
	}
	return s, nil
}

const lineHint = "each line is NAME [OPTIONS] KEYTYPE KEY, as in ssh-keygen(1), ALLOWED SIGNERS"

func parseEntry(line string) (entry, error) {
	principals, rest, ok := strings.Cut(line, " ")
	if !ok {
		return entry{}, problem.New("", fmt.Errorf("%.40q has no key behind the name", line), lineHint)
	}
	// What follows the names is a line of authorized_keys: [options] type key.
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(strings.TrimSpace(rest)))
	if err != nil {
		return entry{}, problem.New("", fmt.Errorf("no key can be read behind the name %.40q", principals), lineHint)
	}
	e := entry{principals: strings.Trim(principals, `"`), key: key}
	for _, option := range options {
		if err := e.option(option); err != nil {
			return entry{}, err
		}
	}
	if strings.ContainsAny(e.principals, "*?!") {
		return entry{}, problem.New("", fmt.Errorf("the name %.40q is a pattern", e.principals), "give each signer a name of its own, so that the status can tell who it was")
	}
	return e, weak(key)
}

func (e *entry) option(option string) (err error) {
	name, value, _ := strings.Cut(option, "=")
	value = strings.Trim(value, `"`)
	switch strings.ToLower(name) {
	case "namespaces":
		e.namespaces = strings.Split(value, ",")
	case "valid-after":
		e.after, err = parseTime(value)
	case "valid-before":
		e.before, err = parseTime(value)
	default:
		return problem.New("", fmt.Errorf("the option %.40q is not understood", name), "use namespaces, valid-after and valid-before only")
	}
	return err
}

// parseTime reads YYYYMMDD[HHMM[SS]][Z]; without the Z it is local time.
func parseTime(s string) (time.Time, error) {
	zone, digits := time.Local, s
	if strings.HasSuffix(s, "Z") {
		zone, digits = time.UTC, strings.TrimSuffix(s, "Z")
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(layout) == len(digits) {
			if t, err := time.ParseInLocation(layout, digits, zone); err == nil {
				return t, nil
			}
		}
	}
	return time.Time{}, problem.New("", fmt.Errorf("%.40q is no time", s), "write YYYYMMDD[HHMM[SS]][Z]")
}

// weak refuses keys that should sign nothing any more.
func weak(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		if c, ok := key.(ssh.CryptoPublicKey); ok {
			if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && k.N.BitLen() >= minRSA {
				return nil
			}
		}
		return fmt.Errorf("the RSA key %s is shorter than %d bits", ssh.FingerprintSHA256(key), minRSA)
	}
	return fmt.Errorf("keys of type %.40q are not accepted", key.Type())
}

// Allows is nil if the key with this fingerprint ("SHA256:…") may sign for git
// at now. It is for what was verified before; "" is what bore no signature.
func (s *Signers) Allows(fingerprint string, now time.Time) error {
	if fingerprint == "" {
		return errors.New("it was taken without a signature")
	}
	_, err := s.find(fingerprint, now)
	return err
}

// find is the name of whose key it is, if it may sign for git at now.
func (s *Signers) find(id string, now time.Time) (string, error) {
	var err error = fmt.Errorf("the key %s belongs to no allowed signer", id)
	for _, e := range s.lines {
		if ssh.FingerprintSHA256(e.key) != id {
			continue
		}
		const hint = "sign with another key, or have its line in the file of allowed signers changed"
		switch {
		case len(e.namespaces) > 0 && !slices.Contains(e.namespaces, namespace):
			err = problem.New("", fmt.Errorf("the key %s of %s may not sign for git", id, e.principals), hint)
		case !e.after.IsZero() && now.Before(e.after):
			err = problem.New("", fmt.Errorf("the key %s of %s is not valid before %s", id, e.principals, e.after.UTC().Format(time.RFC3339)), hint)
		case !e.before.IsZero() && !now.Before(e.before):
			err = problem.New("", fmt.Errorf("the key %s of %s is not valid any more since %s", id, e.principals, e.before.UTC().Format(time.RFC3339)), hint)
		default:
			return e.principals, nil
		}
	}
	return "", err
}
