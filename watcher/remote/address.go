package remote

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"dtesn-agent/schema/problem"
)

var schemes = []string{"https", "http", "ssh", "git"}

// IsLocal reports whether repo is a path of this machine and not the address
// of a remote one: as git decides it, host:path is remote unless a slash
// stands before the colon.
func IsLocal(repo string) bool {
	if strings.Contains(repo, "://") {
		return strings.HasPrefix(repo, "file://")
	}
	before, _, colon := strings.Cut(repo, ":")
	return !colon || strings.Contains(before, "/")
}

// An address is where a repository is. A path without a slash in front begins
// in the home directory of an SSH user.
type address struct {
	scheme, user, host, port, path string
}

func (a address) hostname() string { return strings.Trim(a.host, "[]") }

// keyscan is the command that prints the keys of an SSH host.
func (a address) keyscan() string {
	if a.port != "" && a.port != "22" {
		return "ssh-keyscan -p " + a.port + " " + a.hostname()
	}
	return "ssh-keyscan " + a.hostname()
}

func (a address) hostPort(port string) string {
	if a.port != "" {
		port = a.port
	}
	return a.host + ":" + port
}

// String is the address as it was given, without anything secret: hosts of HTTP
// take a token for a user too.
func (a address) String() string {
	host := a.host
	if a.user != "" && a.scheme == "ssh" {
		host = a.user + "@" + host
	}
	if !strings.HasPrefix(a.path, "/") {
		return host + ":" + a.path
	}
	if a.port != "" {
		host += ":" + a.port
	}
	return a.scheme + "://" + host + a.path
}

// parse takes an address as git does: a URL, or [user@]host:path for SSH.
func parse(repo string) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, problem.New("--repo", errors.New(why), "use a local path, https://HOST/PATH, ssh://USER@HOST/PATH, USER@HOST:PATH, http:// or git://")
	}
	if strings.ContainsAny(repo, "\x00\r\n\t ") {
		return bad("the address holds a space or a control character")
	}
	if !strings.Contains(repo, "://") {
		host, path, _ := strings.Cut(repo, ":")
		user, name, ok := strings.Cut(host, "@")
		if !ok {
			user, name = "", host
		}
		if name == "" || path == "" || strings.HasPrefix(name, "-") || strings.HasPrefix(path, "-") {
			return bad(fmt.Sprintf("%q names no host and path", repo))
		}
		if !ok && strings.Contains(path, "@") { // user:password@host:path
			return bad("a password stands in the address; give it in a file")
		}
		return address{scheme: "ssh", user: user, host: name, path: path}, nil
	}
	u, err := url.Parse(repo)
	if err != nil {
		return bad("the address cannot be understood") // the error would repeat a secret
	}
	scheme := strings.TrimPrefix(u.Scheme, "git+")
	if !slices.Contains(schemes, scheme) {
		return bad(fmt.Sprintf("the scheme %q is none that can be read", u.Scheme))
	}
	if _, has := u.User.Password(); has {
		return address{}, problem.New("--repo", errors.New("a password stands in the address"), "take it out and give it in a file: --git-password-file or --git-token-file")
	}
	if u.Hostname() == "" || strings.HasPrefix(u.Host, "-") || strings.Trim(u.Path, "/") == "" {
		return bad("the address names no host and path")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return bad("the address has a query or a fragment")
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return address{scheme: scheme, user: u.User.Username(), host: host, port: u.Port(), path: strings.TrimSuffix(u.Path, "/")}, nil
}
