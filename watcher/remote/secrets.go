package remote

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

const maxSecret = 1 << 20

// readSecret reads a small file.
func readSecret(path string) ([]byte, error) {
	b, err := smallfile.ReadText(path, maxSecret)
	if err != nil {
		return nil, &problem.Error{Op: "read", Place: path, Err: err, Hint: "it must be a text file that the agent's user can read"}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, problem.New("", errors.New(path+" is empty"), "write it whole, by a rename")
	}
	return b, nil
}

// readLine reads a secret of one line; "" if path is "".
func readLine(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := readSecret(path)
	text := strings.TrimRight(string(b), "\r\n")
	if err == nil && strings.ContainsAny(text, "\r\n") {
		return "", problem.New("", errors.New(path+" has more than one line"), "leave the secret alone in it")
	}
	return text, err
}

// credentials are what an HTTP request sends to be let in.
type credentials struct{ user, password string }

// readCredentials reads the files of a user name and of a password or token. A
// token needs no user name: GitHub asks for x-access-token, others ignore it.
func (f Files) readCredentials(user string) (c credentials, err error) {
	c.user = user
	name, errName := readLine(f.Username)
	password, errPassword := readLine(f.Password)
	token, errToken := readLine(f.Token)
	if name != "" {
		c.user = name
	}
	c.password = password
	if token != "" {
		c.password = token
		if c.user == "" {
			c.user = "x-access-token"
		}
	}
	return c, errors.Join(errName, errPassword, errToken)
}

// secrets returns the texts that must appear in no error.
func (c credentials) secrets() []string {
	if c.password == "" {
		return nil
	}
	return []string{c.password, base64.StdEncoding.EncodeToString([]byte(c.user + ":" + c.password))}
}
