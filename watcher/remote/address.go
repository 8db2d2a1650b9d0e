package remote

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"dtesn-agent/schema/problem"
)

var schemes = []string{"https", "http", "ssh"}

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

// Location returns where a repository is, without anything secret. The error says
// what is wrong with the address.
func Location(repo string) (string, error) {
	if IsLocal(repo) {
		return strings.TrimPrefix(repo, "file://"), nil
	}
	at, err := parse(repo)
	return at.String(), err
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
		if a.port != "" {
			host = "[" + host + ":" + a.port + "]"
		}
		return host + ":" + a.path
	}
	if a.port != "" {
		host += ":" + a.port
	}
	return a.scheme + "://" + host + a.path
}

// parse parses an address as git does: a URL, or [user@]host:path for SSH.
func parse(repo string) (address, error) {
	if strings.ContainsAny(repo, "\x00\r\n\t ") {
		return badAddress("the address has a space or a control character")
	}
	if !strings.Contains(repo, "://") {
		return parseSCP(repo)
	}
	u, err := url.Parse(repo)
	if err != nil {
		return badAddress("invalid URL") // the error would repeat a secret
	}
	scheme := strings.TrimPrefix(u.Scheme, "git+")
	if !slices.Contains(schemes, scheme) {
		return badAddress(fmt.Sprintf("unknown scheme %q", u.Scheme))
	}
	if _, has := u.User.Password(); has {
		return address{}, problem.New("--repo", errors.New("the address has a password"), "take it out and give it in a file: --git-password-file or --git-token-file")
	}
	if u.Hostname() == "" || strings.HasPrefix(u.Host, "-") || strings.Trim(u.Path, "/") == "" {
		return badAddress("the address has no host and path")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return badAddress("the address has a query or a fragment")
	}
	path := strings.TrimSuffix(u.Path, "/")
	if scheme == "ssh" && strings.HasPrefix(path, "/~") {
		path = path[1:] // the home directory, which git-upload-pack expands
	}
	return address{scheme: scheme, user: u.User.Username(), host: bracketed(u.Hostname()), port: u.Port(), path: path}, nil
}

func badAddress(why string) (address, error) {
	return address{}, problem.New("--repo", errors.New(why), "use a local path, https://HOST/PATH, ssh://USER@HOST/PATH, USER@HOST:PATH or http://HOST/PATH")
}

// parseSCP parses [user@]host:path, where brackets enclose an IPv6 address, or a
// host and its port.
func parseSCP(repo string) (address, error) {
	user, rest, hasUser := strings.Cut(repo, "@")
	if colon := strings.Index(repo, ":"); !hasUser || colon < len(user) { // the @ is in the path
		user, rest, hasUser = "", repo, false
	}
	at := address{scheme: "ssh", user: user}
	var ok bool
	if inner, isBracketed := strings.CutPrefix(rest, "["); isBracketed {
		at.host, at.path, ok = strings.Cut(inner, "]:")
		if host, port, hasPort := strings.Cut(at.host, ":"); hasPort && !strings.Contains(port, ":") {
			at.host, at.port = host, port
		}
	} else {
		at.host, at.path, ok = strings.Cut(rest, ":")
	}
	if !ok || at.host == "" || at.path == "" || strings.HasPrefix(at.host, "-") || strings.HasPrefix(at.path, "-") {
		return badAddress(fmt.Sprintf("%q has no host and path", repo))
	}
	if !hasUser && strings.Contains(at.path, "@") { // user:password@host:path
		return badAddress("the address has a password; give it in a file")
	}
	at.host = bracketed(at.host)
	return at, nil
}

// bracketed encloses an IPv6 address in brackets.
func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
