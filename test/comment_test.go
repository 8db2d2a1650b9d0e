package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A pullRequest is branch topic of a repository, on a host.
type pullRequest struct {
	*codeHost
	dir string
}

func newPullRequest(t *testing.T, isGitLab bool) *pullRequest {
	dir := repository(t, "config")
	git(t, dir, "checkout", "--quiet", "-b", "topic")
	return &pullRequest{newCodeHost(t, isGitLab, dir), dir}
}

// run runs the agent in the repository, with more environment and an input.
func (p *pullRequest) run(env []string, input string, args ...string) (code int, out string) {
	cmd := exec.Command("agent", args...)
	cmd.Dir, cmd.Stdin = p.dir, strings.NewReader(input)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GITHUB_") && !strings.HasPrefix(v, "CI_") && !strings.HasPrefix(v, "GITLAB_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	p.barrier()
	defer p.barrier()
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

func (p *pullRequest) commit() { git(p.t, p.dir, "commit", "--quiet", "--all", "--message=change") }

// comment runs agent comment as a CI job does.
func (p *pullRequest) comment(args ...string) (code int, out string) {
	return p.run(p.environment(), "", append([]string{"comment", "--from", "main", "--config", "config"}, args...)...)
}

// the returns the only comment of the agent.
func (p *pullRequest) the() *hostComment {
	p.t.Helper()
	var own []*hostComment
	for _, c := range p.comments {
		if c != nil && !c.atLine && strings.Contains(fmt.Sprint(c.User, c.Author), fmt.Sprint(p.who(true))) {
			own = append(own, c)
		}
	}
	if len(own) != 1 {
		p.t.Fatalf("%s: %d comments of the agent", p, len(own))
	}
	return own[0]
}

func onBoth(t *testing.T, story func(t *testing.T, p *pullRequest)) {
	for _, isGitLab := range []bool{false, true} {
		t.Run(map[bool]string{false: "GitHub", true: "GitLab"}[isGitLab], func(t *testing.T) { story(t, newPullRequest(t, isGitLab)) })
	}
}

// TestComment: one comment, found again among hundreds, edited where the plan changes and
// left alone where it does not.
func TestComment(t *testing.T) {
	onBoth(t, func(t *testing.T, p *pullRequest) {
		if code, out := p.comment(); code != 0 || out != "nothing changes: no comment\n" || len(p.comments) != 0 {
			t.Fatalf("nothing changes: exit %d, %s", code, out)
		}
		replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
		p.commit()
		if code, out := p.comment(); code != 0 || !strings.HasPrefix(out, "pull request 7: **production**: experiment") {
			t.Fatalf("exit %d, %s", code, out)
		}
		lines := strings.Split(p.the().Body, "\n")
		if !strings.HasPrefix(lines[0], "<!-- ") || lines[1] != "**production**: experiment `bigger-reservoir` goes from 10 % to 50 %, and its engines rebuild" {
			t.Fatalf("%s", p.the().Body)
		}
		marker := lines[0]
		for i := range 250 {
			p.add(fmt.Sprintf("talk %d", i), false, false)
		}
		p.comments[0].Body, p.comments[240].Body = "talk", p.comments[0].Body // the own one stands on a later page now,
		for i, c := range []*hostComment{p.comments[0], p.comments[240]} {
			if p.isGitLab {
				c.Author = p.who(i == 1)
			} else {
				c.User = p.who(i == 1)
			}
		}
		p.comments[3].Body = marker + "\nAll is well." // and somebody else wants to be taken for it
		if code, out := p.comment(); code != 0 || p.the().isEdited != 0 {
			t.Errorf("the same plan: exit %d, %s, edited %d times", code, out, p.the().isEdited)
		}
		replace(t, p.dir, "config/production.yaml", "percent: 50", "percent: 40")
		p.commit()
		if code, out := p.comment(); code != 0 || p.the().isEdited != 1 || !strings.Contains(p.the().Body, "to 40 %") || !strings.Contains(p.comments[3].Body, "All is well") {
			t.Errorf("another plan: exit %d, %s\n%s", code, out, p.the().Body)
		}
		replace(t, p.dir, "config/production.yaml", "percent: 40", "percent: 10")
		p.commit()
		if code, out := p.comment(); code != 0 || !strings.HasSuffix(p.the().Body, "\nNo environment changes.") {
			t.Errorf("nothing changes any more: exit %d, %s\n%s", code, out, p.the().Body)
		}
	})
}

// TestSuggestions: what surely ends a violation is suggested once where the pull request shows
// its line, and else the comment has the command. Taking both makes it valid.
func TestSuggestions(t *testing.T) {
	onBoth(t, func(t *testing.T, p *pullRequest) {
		git(t, p.dir, "checkout", "--quiet", "main")
		replace(t, p.dir, "config/staging.yaml", "environment: staging\n", "environment: staging\n\n# a wrong value stands here already\n\n\n\n")
		replace(t, p.dir, "config/base.yaml", "enable_caching: true", "enable_caching: 'true'")
		p.commit()
		git(t, p.dir, "checkout", "--quiet", "topic")
		git(t, p.dir, "rebase", "--quiet", "main")
		replace(t, p.dir, "config/production.yaml", "max_membrane_depth: 8", "max_membrane_depht: 8")
		p.commit()
		for range 2 {
			if code, out := p.comment(); code != 0 || !strings.Contains(out, "not valid") {
				t.Fatalf("exit %d, %s", code, out)
			}
			_, suggestions := p.below()
			if len(suggestions) != 1 {
				t.Fatalf("%d suggestions", len(suggestions))
			}
			body := p.the().Body
			if !strings.Contains(body, "<details open><summary>production</summary>") || strings.Count(body, "suggested at its line") != 1 {
				t.Fatalf("%s", body)
			}
		}
		_, suggestions := p.below()
		block := regexp.MustCompile("(?s)```suggestion(:-0\\+0)?\n(.*)\n```$").FindStringSubmatch(suggestions[0].Body)
		if block == nil || (block[1] != "") != p.isGitLab || !strings.Contains(block[2], "max_membrane_depth: 8") {
			t.Fatalf("%s", suggestions[0].Body)
		}
		text, err := os.ReadFile(filepath.Join(p.dir, "config/production.yaml"))
		ok(t, err)
		fixed := regexp.MustCompile(`(?m)^.*max_membrane_depht.*$`).ReplaceAllLiteralString(string(text), block[2])
		ok(t, os.WriteFile(filepath.Join(p.dir, "config/production.yaml"), []byte(fixed), 0o644))
		set := regexp.MustCompile("To correct that: `(agent set [^`]*)`").FindStringSubmatch(p.the().Body)
		if set == nil || !strings.Contains(set[1], "--layer base.yaml") {
			t.Fatalf("no command: %s", p.the().Body)
		}
		if out, err := command(t, p.dir, "sh", "-c", set[1]); err != nil {
			t.Fatalf("%s: %v\n%s", set[1], err, out)
		}
		if code, out := agent("validate", filepath.Join(p.dir, "config")); code != 0 {
			t.Errorf("with both: exit %d\n%s", code, out)
		}
	})
}

// TestCommentFails: what a host refuses is said in one message, and fails a build only if
// that is asked for.
func TestCommentFails(t *testing.T) {
	onBoth(t, func(t *testing.T, p *pullRequest) {
		replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
		p.commit()
		for code, want := range map[int]string{
			http.StatusUnauthorized: "the token is invalid or expired", http.StatusForbidden: map[bool]string{false: "pull-requests: write", true: "scope api"}[p.isGitLab],
			http.StatusNotFound: "check the repository and the number", http.StatusUnprocessableEntity: "locked", http.StatusMovedPermanently: "the repository moved",
			http.StatusInternalServerError: "500 Internal Server Error", http.StatusTooManyRequests: "try again in 3600 s",
		} {
			p.fail = func(call string) (int, http.Header) {
				if strings.HasPrefix(call, "GET") {
					return 0, nil
				}
				return code, http.Header{"Retry-After": {"3600"}, "Location": {"/elsewhere"}}
			}
			if code == http.StatusForbidden {
				p.fail = func(string) (int, http.Header) { return http.StatusForbidden, nil }
			}
			exit, out := p.comment()
			if exit != 0 || !strings.HasPrefix(out, "warning: ask Git") || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 || strings.Contains(out, "secret") {
				t.Errorf("%d: exit %d, %s", code, exit, out)
			}
			if exit, out = p.comment("--fail"); exit != 1 || !strings.Contains(out, want) {
				t.Errorf("%d: exit %d, %s", code, exit, out)
			}
			if len(p.comments) != 0 {
				t.Fatalf("%d: there is a comment", code)
			}
		}
		left := 2
		p.fail = func(string) (int, http.Header) {
			if left--; left < 0 {
				return 0, nil
			}
			return http.StatusTooManyRequests, http.Header{"Retry-After": {"0"}}
		}
		if exit, out := p.comment("--fail"); exit != 0 || len(p.comments) != 1 {
			t.Errorf("a host that limits requests: exit %d, %s", exit, out)
		}
	})
}

// TestCommentOfAFork: the token only reads; the summary of the job has it all, and the
// warning is an annotation.
func TestCommentOfAFork(t *testing.T) {
	p := newPullRequest(t, false)
	replace(t, p.dir, "config/production.yaml", "max_membrane_depth: 8", "max_membrane_depht: 8")
	p.commit()
	p.fail = func(call string) (int, http.Header) {
		if strings.HasPrefix(call, "GET") {
			return 0, nil
		}
		return http.StatusForbidden, nil
	}
	summary := filepath.Join(t.TempDir(), "summary")
	code, out := p.run(append(p.environment(), "GITHUB_STEP_SUMMARY="+summary, "GITHUB_ACTIONS=true"), "", "comment", "--from", "main", "--config", "config")
	text, err := os.ReadFile(summary)
	if err != nil || code != 0 || !strings.Contains(out, "::warning title=No comment was posted::ask GitHub") ||
		!strings.HasPrefix(string(text), "**production**: not valid") || !strings.Contains(string(text), "To correct that: `agent set max_membrane_depth=8 max_membrane_depht- --environment production --config config`") {
		t.Errorf("exit %d, %s\n%s %v", code, out, text, err)
	}
}

// TestCommentUsage: each mistake of the command line has one message.
func TestCommentUsage(t *testing.T) {
	p := newPullRequest(t, false)
	for _, c := range []struct {
		env  []string
		args string
		want string
	}{
		{nil, "--from main --config config", "not a CI job of a pull request"},
		{nil, "--config config", "--from is needed"},
		{nil, "--from main --config config --pr 7 --fail", "not a CI job of GitLab or GitHub"},
		{nil, "--from main --config config --pr 7 --fail --repository https://git.example.com/a/b", "unknown code host git.example.com"},
		{nil, "--from main --config config --pr 7 --fail --repository https://github.com/a/b", "there is no token"},
		{[]string{"GITHUB_TOKEN=x"}, "--from main --config config --pr 7 --fail --repository http://git.example.com/a/b --host github", "the token would be sent unencrypted"},
		{[]string{"GITHUB_TOKEN=x"}, "--from main --config config --pr 7 --fail --repository github.com/a/b", "not the address of a repository"},
		{nil, "--from main --config config --pr 7 --host gitea", "is none of github, gitlab"},
		{nil, "--from nowhere --config config --pr 7", "nowhere"},
		{nil, "--outcome --repository https://github.com/a/b", "standard input has no event"},
	} {
		code, out := p.run(c.env, "{}", append([]string{"comment"}, strings.Fields(c.args)...)...)
		if code == 0 || !strings.Contains(out, c.want) || strings.Count(out, "hint: ") > 1 {
			t.Errorf("%s: exit %d, %s", c.args, code, out)
		}
	}
}

// TestOutcome: after the merge the same comment says what came of it on each instance, those
// that failed first, whoever tells it first and how often.
func TestOutcome(t *testing.T) {
	onBoth(t, func(t *testing.T, p *pullRequest) {
		replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
		p.commit()
		if code, out := p.comment(); code != 0 {
			t.Fatalf("exit %d, %s", code, out)
		}
		plan := strings.SplitN(p.the().Body, "\n", 2)[1]
		p.brought = p.head()
		tell := func(instance, kind, reason string, at int) (int, string) {
			event := fmt.Sprintf(`{"data":{"type":%q,"at":%d,"instance":%q,"environment":"production","reason":%q,"source":{"commit":%q}}}`, kind, at, instance, reason, p.brought)
			return p.run(p.environment()[:2], event, "comment", "--outcome", "--fail", "--config", "config", "--token-file", tokenFile(t))
		}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				if code, out := tell(fmt.Sprintf("web-%d", i), "applied", "", 1796077440+60*i); code != 0 {
					t.Errorf("exit %d, %s", code, out)
				}
			})
		}
		all.Wait()
		if code, out := tell("web-9", "rejected", "no memory --> <b>", 1796077440); code != 0 || !strings.Contains(out, "rejected") {
			t.Errorf("exit %d, %s", code, out)
		}
		if code, out := tell("web-1", "applied", "", 1796077000); code != 0 { // told late, or again
			t.Errorf("exit %d, %s", code, out)
		}
		lines := strings.Split(p.the().Body, "\n")
		if len(lines) < 12 || lines[2] != "**Live on 4 of 5 instances that reported**" || lines[4] != "* **rejected** on `web-9` (production) at 2026-11-30 22:24 UTC: `no memory --> <b>`" ||
			lines[5] != "* live on `web-3` (production) since 2026-11-30 22:27 UTC" || lines[7] != "* live on `web-1` (production) since 2026-11-30 22:25 UTC" || !strings.HasSuffix(p.the().Body, plan) {
			t.Errorf("%s", p.the().Body)
		}
		if code, _ := tell("web-9", "applied", "", 1796078000); code != 0 || !strings.Contains(p.the().Body, "**Live on 5 of 5 instances that reported**") || strings.Contains(p.the().Body, "rejected") {
			t.Errorf("it came right: %s", p.the().Body)
		}
		p.brought = "none"
		edited := p.the().isEdited
		code, out := p.run(p.environment()[:2], fmt.Sprintf(`{"data":{"type":"applied","instance":"a","environment":"production","source":{"commit":%q}}}`, p.head()),
			"comment", "--outcome", "--fail", "--config", "config", "--token-file", tokenFile(t))
		if code != 0 || !strings.Contains(out, "no pull request brought it") || p.the().isEdited != edited {
			t.Errorf("a push without a pull request: exit %d, %s", code, out)
		}
	})
}

// TestOutcomesAtOnce: of instances that edit the comment at the same time, over a host whose
// edits take effect late and in any order, none is lost.
func TestOutcomesAtOnce(t *testing.T) {
	p := newPullRequest(t, false)
	replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
	p.commit()
	p.brought = p.head()
	p.late = func(call string) time.Duration {
		if strings.HasPrefix(call, "PATCH") {
			return rand.N(1500 * time.Millisecond)
		}
		return 0
	}
	const instances = 5
	var all sync.WaitGroup
	for i := range instances {
		all.Go(func() {
			event := fmt.Sprintf(`{"type":"applied","at":%d,"instance":"web-%d","environment":"production","source":{"commit":%q}}`, time.Now().Unix(), i, p.brought)
			if code, out := p.run(p.environment(), event, "comment", "--outcome", "--fail", "--config", "config"); code != 0 {
				t.Errorf("exit %d, %s", code, out)
			}
		})
	}
	all.Wait()
	if body := p.the().Body; !strings.Contains(body, "**Live on 5 of 5 instances that reported**") {
		t.Errorf("%s", body)
	}
}

// TestOutcomeRefused: an event that the host refuses does not keep the later ones waiting,
// and a plan that is written again forgets no outcome.
func TestOutcomeRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, p *pullRequest) {
		replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
		p.commit()
		p.brought = p.head()
		event := func(kind, reason string) string {
			return fmt.Sprintf(`{"type":%q,"at":1796077440,"instance":"a","environment":"production","reason":%q,"source":{"commit":%q}}`, kind, reason, p.brought)
		}
		for _, refused := range []string{"/commits/", "POST"} {
			p.fail = func(call string) (int, http.Header) {
				if strings.Contains(call, refused) {
					return http.StatusUnprocessableEntity, nil
				}
				return 0, nil
			}
			if code, out := p.run(p.environment(), event("applied", ""), "comment", "--outcome", "--fail", "--config", "config"); code != 0 {
				t.Errorf("%s: exit %d, %s", refused, code, out)
			}
		}
		p.fail = func(string) (int, http.Header) { return http.StatusNotFound, nil }
		if code, out := p.run(p.environment(), event("applied", ""), "comment", "--outcome", "--fail", "--config", "config"); code != 1 {
			t.Errorf("a repository that the token may not see: exit %d, %s", code, out)
		}
		p.fail = func(call string) (int, http.Header) {
			if strings.HasPrefix(call, "POST") {
				return http.StatusForbidden, http.Header{"X-Locked": {"yes"}}
			}
			return 0, nil
		}
		if code, out := p.run(p.environment(), event("applied", ""), "comment", "--outcome", "--fail", "--config", "config"); code != 0 || !strings.Contains(out, "locked") {
			t.Errorf("a locked conversation: exit %d, %s", code, out)
		}
		p.fail = nil
		for range 3 {
			if code, out := p.run(p.environment(), event("rejected", "no <!-- end of outcomes --> `x`"), "comment", "--outcome", "--fail", "--config", "config"); code != 0 {
				t.Fatalf("exit %d, %s", code, out)
			}
		}
		before := p.the().Body
		if code, out := p.comment(); code != 0 || !strings.HasPrefix(p.the().Body, before) || !strings.Contains(p.the().Body, "10 % to 50 %") {
			t.Errorf("the job runs again: exit %d, %s\n%s", code, out, p.the().Body)
		}
		for i := range 400 { // more than a comment can hold
			p.the().Body = strings.Replace(p.the().Body, "[{", fmt.Sprintf(`[{"environment":"production","instance":"i-%d","type":"rejected","at":%d,"reason":%q},{`, i, i, strings.Repeat("long ", 40)), 1)
		}
		if code, out := p.run(p.environment(), event("applied", ""), "comment", "--outcome", "--fail", "--config", "config"); code != 0 || len(p.the().Body) > 65536 || !strings.Contains(p.the().Body, "10 % to 50 %") {
			t.Errorf("exit %d, %s, %d bytes", code, out, len(p.the().Body))
		}
	})
}

func tokenFile(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "token")
	ok(t, os.WriteFile(name, []byte("secret\n"), 0o600))
	return name
}

// TestOutcomeHook: the ready hook of examples/hooks tells of a real merge.
func TestOutcomeHook(t *testing.T) {
	p, r := newPullRequest(t, false), newBareRig(t)
	replace(t, p.dir, "config/production.yaml", "percent: 10", "percent: 50")
	replace(t, p.dir, "config/production.yaml", "max_membrane_depth: 8", "max_membrane_depth: 7")
	p.commit()
	git(t, p.dir, "checkout", "--quiet", "main")
	text, err := os.ReadFile("../examples/hooks/hooks.yaml")
	ok(t, err)
	hooks := t.TempDir()
	edited := strings.NewReplacer("/etc/dtesn-agent", hooks, "/var/lib/dtesn-agent", r.state, "https://github.com/example/config", p.url+"/example/config", "--outcome,", "--outcome, --host, github,").Replace(string(text))
	edited, _, _ = strings.Cut(edited, "# The team's chat")
	put(t, filepath.Join(hooks, "hooks.yaml"), edited)
	put(t, filepath.Join(hooks, "github.token"), "secret\n")
	ok(t, os.Chmod(filepath.Join(hooks, "github.token"), 0o600))
	r.embedded(func(cmd *exec.Cmd) {
		cmd.Args = append(cmd.Args, "--repo", p.dir, "--ref", "main", "--config", "config", "--hooks", filepath.Join(hooks, "hooks.yaml"))
	})
	r.await("in sync", func(v view) bool { return v.InSync })
	git(t, p.dir, "merge", "--quiet", "topic")
	p.mu.Lock()
	p.brought = p.head()
	p.mu.Unlock()
	r.until("the comment says so", func() bool {
		below, _ := p.below()
		return len(below) == 1 && strings.Contains(below[0].Body, "**Live on 1 of 1 instances that reported**")
	})
	if code, out := agent("rollback", "--reason", "too slow", "--state", r.state); code != 0 {
		t.Fatalf("exit %d, %s", code, out)
	}
	r.until("and that it was rolled back", func() bool {
		below, _ := p.below()
		return len(below) == 1 && strings.Contains(below[0].Body, "too slow") && strings.Contains(below[0].Body, "**Live on 0 of 1 ")
	})
	if code, out := agent("resume", "--reason", "faster now", "--state", r.state); code != 0 {
		t.Fatalf("exit %d, %s", code, out)
	}
	r.await("in sync again", func(v view) bool { return v.InSync })
	git(t, p.dir, "checkout", "--quiet", "topic")
	replace(t, p.dir, "config/production.yaml", "max_membrane_depth: 7", "max_membrane_depth: 6")
	p.commit()
	p.mu.Lock()
	p.brought = p.head()
	p.mu.Unlock()
	git(t, p.dir, "checkout", "--quiet", "-b", "more")
	replace(t, p.dir, "config/production.yaml", "max_membrane_depth: 6", "max_membrane_depth: 5")
	p.commit()
	git(t, p.dir, "checkout", "--quiet", "main")
	git(t, p.dir, "merge", "--quiet", "more") // both at once
	r.until("and that it came with another one", func() bool {
		below, _ := p.below()
		return len(below) == 1 && strings.Contains(below[0].Body, ", with what was merged after it")
	})
}
