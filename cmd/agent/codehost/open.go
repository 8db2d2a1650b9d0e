package codehost

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"dtesn-agent/schema/problem"
)

// Options name a Repository. The environment of a CI job gives what is empty.
type Options struct {
	URL   string // https://github.com/OWNER/NAME, of the repository
	Kind  string // one of Kinds, "" to detect it
	Token string
}

// A kind is a code host that this package knows.
type kind struct {
	name string // in messages
	flag string // of Options.Kind
	// api and repository are the variables of a CI job with the address of the API and the
	// path of the repository. defaultAPI is for an empty one.
	api, defaultAPI, repository string
	tokens                      []string            // variables with a token
	number                      func(getenv) string // of the pull request of a CI job
	isAt                        func(hostname string) bool
	apiOf                       func(base, hostname string) string
	forbidden                   string // hint for a token that may not write
	newHost                     func(c *client, path string) host
}

type getenv = func(name string) string

// kinds are in the order of detection.
var kinds = []*kind{
	{
		name: "GitLab", flag: "gitlab",
		api: "CI_API_V4_URL", repository: "CI_PROJECT_ID", tokens: []string{"GITLAB_TOKEN"},
		number:    func(env getenv) string { return env("CI_MERGE_REQUEST_IID") },
		isAt:      func(hostname string) bool { return strings.Contains(hostname, "gitlab") },
		apiOf:     func(base, _ string) string { return base + "/api/v4" },
		forbidden: "use a project access token with the scope api and the role Reporter as GITLAB_TOKEN; the token of the job may not comment",
		newHost:   newGitLab,
	},
	{
		name: "GitHub", flag: "github",
		api: "GITHUB_API_URL", defaultAPI: "https://api.github.com", repository: "GITHUB_REPOSITORY", tokens: []string{"GITHUB_TOKEN", "GH_TOKEN"},
		number: func(env getenv) string {
			rest, isPull := strings.CutPrefix(env("GITHUB_REF"), "refs/pull/")
			if !isPull {
				return ""
			}
			number, _, _ := strings.Cut(rest, "/")
			return number
		},
		isAt: func(hostname string) bool { return hostname == "github.com" },
		apiOf: func(base, hostname string) string {
			if hostname == "github.com" {
				return "https://api.github.com"
			}
			return base + "/api/v3" // GitHub Enterprise Server
		},
		forbidden: "give the job `permissions: pull-requests: write`; for a pull request from a fork the token only reads, and the summary of the job has the plan",
		newHost:   newGitHub,
	},
}

// Kinds returns the values of Options.Kind, sorted.
func Kinds() (names []string) {
	for _, k := range kinds {
		names = append(names, k.flag)
	}
	slices.Sort(names)
	return names
}

// Open returns the Repository that the options and the environment of a CI job name.
func Open(opt Options, env func(string) string) (*Repository, error) {
	find := fromURL
	if opt.URL == "" {
		find = fromJob
	}
	k, api, path, err := find(opt, env)
	if err != nil {
		return nil, err
	}
	c := &client{kind: k, api: strings.TrimSuffix(api, "/"), token: opt.Token}
	for _, name := range k.tokens {
		c.token = cmp.Or(c.token, env(name))
	}
	if c.token = strings.TrimSpace(c.token); c.token == "" {
		return nil, problem.New("", errors.New("there is no token"), fmt.Sprintf("set %s, or give --token-file", k.tokens[0]))
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Repository{k.newHost(c, path)}, nil
}

// fromJob finds the repository of a CI job.
func fromJob(opt Options, env getenv) (k *kind, api, path string, err error) {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
		api, path := cmp.Or(env(k.api), k.defaultAPI), env(k.repository)
		if (opt.Kind == "" || opt.Kind == k.flag) && api != "" && path != "" {
			return k, api, path, nil
		}
	}
	return nil, "", "", problem.New("", fmt.Errorf("not a CI job of %s", strings.Join(names, " or ")), "name the repository: --repository https://github.com/OWNER/NAME")
}

// fromURL finds the repository with the address opt.URL.
func fromURL(opt Options, _ getenv) (k *kind, api, path string, err error) {
	u, err := url.Parse(opt.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || strings.Count(strings.Trim(u.Path, "/"), "/") < 1 {
		return nil, "", "", problem.New("", errors.New("--repository: not the address of a repository"), "write it as https://github.com/OWNER/NAME, without a user")
	}
	for _, k := range kinds {
		if opt.Kind == k.flag || opt.Kind == "" && k.isAt(u.Hostname()) {
			return k, k.apiOf(u.Scheme+"://"+u.Host, u.Hostname()), strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git"), nil
		}
	}
	return nil, "", "", problem.New("", fmt.Errorf("unknown code host %s", u.Hostname()), "give --host "+strings.Join(Kinds(), " or --host "))
}

// check returns an error if the token must not be sent to the API.
func (c *client) check() error {
	u, err := url.Parse(c.api)
	if err != nil || u.Host == "" || u.User != nil { // the address may contain a password
		return problem.New("", errors.New("invalid address of the API"), fmt.Sprintf("set %s to https://HOST/PATH, without a user", c.kind.api))
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" && (ip == nil || !ip.IsLoopback()) {
		return problem.New("", fmt.Errorf("the token would be sent unencrypted to %s", u.Host), "use https://")
	}
	return nil
}

// Number returns the number of the pull request that a CI job is for, or 0.
func Number(env func(string) string) int {
	for _, k := range kinds {
		if n, err := strconv.Atoi(k.number(env)); err == nil {
			return n
		}
	}
	return 0
}
