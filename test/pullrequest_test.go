package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// actionlint knows the syntax of workflows, and the inputs of known actions.
const actionlint = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"

// A workflow is what we rely on in a file for GitHub Actions.
type workflow struct {
	On struct {
		PullRequest struct{ Paths []string } `yaml:"pull_request"`
	} `yaml:"on"`
	Permissions map[string]string
	Jobs        map[string]struct {
		Permissions map[string]string
		Steps       []workflowStep
	}
}

type workflowStep struct {
	Name, Uses, Run, If, Shell string

	With map[string]string
	Env  map[string]string
	Dir  string `yaml:"working-directory"`
}

func readWorkflow(t *testing.T) (w workflow, steps []workflowStep) {
	t.Helper()
	text, err := os.ReadFile("../examples/ci/github.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &w); err != nil {
		t.Fatal(err)
	}
	for _, job := range w.Jobs {
		steps = append(steps, job.Steps...)
	}
	return w, steps
}

// TestWorkflow holds that the workflow for GitHub is one, may do nothing but
// read and comment, and runs when the configuration changes.
func TestWorkflow(t *testing.T) {
	w, steps := readWorkflow(t)
	if !slices.Contains(w.On.PullRequest.Paths, "config/**") {
		t.Errorf("runs for %v", w.On.PullRequest.Paths)
	}
	if len(w.Permissions) != 2 || w.Permissions["contents"] != "read" || w.Permissions["pull-requests"] != "write" {
		t.Errorf("permissions %v, want contents: read, pull-requests: write", w.Permissions)
	}
	for name, job := range w.Jobs {
		if job.Permissions != nil {
			t.Errorf("job %s has permissions of its own: %v", name, job.Permissions)
		}
	}
	pinned := regexp.MustCompile(`^[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})$`)
	for _, s := range steps {
		if s.Uses != "" && !pinned.MatchString(s.Uses) {
			t.Errorf("%s is pinned neither to a major version nor to a commit", s.Uses)
		}
		if strings.HasPrefix(s.Uses, "actions/checkout@") && s.With["persist-credentials"] != "false" {
			t.Errorf("a checkout leaves its token behind: %v", s.With)
		}
		if strings.Contains(s.Run, "${{") {
			t.Errorf("an expression in a script lets foreign text run: %s", s.Run)
		}
	}
	bin := t.TempDir()
	install := exec.Command("go", "install", actionlint)
	install.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		lacking(t, "needs actionlint, and cannot install it: "+string(out))
	}
	out, err := exec.Command(filepath.Join(bin, "actionlint"), "-no-color", "../examples/ci/github.yaml").CombinedOutput()
	if err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
}

// TestWorkflowOnAPullRequest does what GitHub does: it runs each script of the
// workflow, in a checkout with a good and with a bad configuration, and reads
// the annotations.
func TestWorkflowOnAPullRequest(t *testing.T) {
	needs(t, "bash", "make", "git")
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	runner := t.TempDir()
	origin := repository(t, "config")
	host := newCodeHost(t, false, origin)
	for _, v := range host.environment() {
		if name, value, _ := strings.Cut(v, "="); name != "GITHUB_TOKEN" { // the step has it
			t.Setenv(name, value)
		}
	}
	pull := func() (workspace string) { // checks out the merge of what was changed, as GitHub does
		t.Helper()
		git(t, origin, "checkout", "--quiet", "-B", "topic")
		git(t, origin, "commit", "--quiet", "--all", "--message=change")
		git(t, origin, "checkout", "--quiet", "--detach", "main")
		git(t, origin, "merge", "--quiet", "--no-ff", "--message=merge", "topic")
		workspace = filepath.Join(t.TempDir(), "workspace")
		git(t, origin, "clone", "--quiet", "--depth=2", "file://"+origin, workspace)
		git(t, origin, "checkout", "--quiet", "main")
		must(t, os.Symlink(source, filepath.Join(workspace, ".dtesn-agent")))
		return workspace
	}

	replace(t, origin, "config/production.yaml", "percent: 10", "percent: 50")
	code, annotations, summary := runSteps(t, pull(), runner)
	if code != 0 || len(annotations) != 0 || !strings.HasPrefix(summary, "**production**: experiment `bigger-reservoir` goes from 10 % to 50 %, and its engines rebuild\n") {
		t.Fatalf("a good configuration: exit %d, annotations %v, summary\n%s", code, annotations, summary)
	}

	git(t, origin, "rm", "--quiet", "config/testing.yaml")
	code, annotations, summary = runSteps(t, pull(), runner)
	if code != 3 || len(annotations) != 1 || !strings.Contains(annotations[0], "config/testing.yaml") || !strings.HasPrefix(summary, "**testing**: removed") {
		t.Fatalf("an environment less: exit %d, annotations %v, summary\n%s", code, annotations, summary)
	}

	replace(t, origin, "config/production.yaml", "max_membrane_depth: 8", "max_membrane_depht: 8")
	replace(t, origin, "config/base.yaml", "cache_ttl_seconds: 300", "cache_ttl_seconds: 0")
	replace(t, origin, "config/development.yaml", "esn_reservoir_size: 256", "esn_reservoir_size: 64")
	code, annotations, summary = runSteps(t, pull(), runner)
	if code != 3 || !strings.Contains(summary, "**development, production**: not valid, nothing is applied: 2 violations") {
		t.Errorf("a bad configuration: exit %d, summary\n%s", code, summary)
	}
	if below, atLines := host.below(); len(below) != 1 || below[0].isEdited != 2 || len(atLines) != 1 {
		t.Errorf("%d comments, and %d at lines", len(below), len(atLines))
	}
	want := []string{
		`config/base.yaml 27 22 "development, staging, production, testing: 1-86400" Invalid value for cache_ttl_seconds: 0|use an integer from 1 to 86400; the default is 300`,
		`config/development.yaml 10 23 "development: esn_reservoir_size >= max_membrane_depth * 32" parameters.esn_reservoir_size: ESN reservoir size (64) should be at least 128 for membrane depth 4|set esn_reservoir_size to 128 or more, or max_membrane_depth to 2 or less|see config/base.yaml:14:23`,
		`config/production.yaml 14 3 "production: known keys only" parameters.max_membrane_depht: unknown key max_membrane_depht|did you mean max_membrane_depth?`,
	}
	if slices.Sort(annotations); !slices.Equal(annotations, want) {
		t.Errorf("annotations\n%s\nwant\n%s", strings.Join(annotations, "\n"), strings.Join(want, "\n"))
	}
}

// runSteps runs the scripts of the workflow as a runner does, until one fails,
// and returns its exit code, the annotations and the summary.
func runSteps(t *testing.T, workspace, runner string) (code int, annotations []string, summary string) {
	t.Helper()
	summaryFile := filepath.Join(workspace, ".summary")
	defer func() {
		text, _ := os.ReadFile(summaryFile)
		summary = string(text)
	}()
	_, steps := readWorkflow(t)
	for _, s := range steps {
		if s.Run == "" {
			continue
		}
		token, hasToken := s.Env["GITHUB_TOKEN"]
		if s.If != "" || s.Shell != "" || hasToken != (len(s.Env) == 1) || hasToken && token != "${{ github.token }}" {
			t.Fatalf("step %q has what this runner does not know: %+v", s.Name, s)
		}
		script := filepath.Join(runner, "step.sh")
		must(t, os.WriteFile(script, []byte(s.Run), 0o644))
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
		defer stop()
		cmd := exec.CommandContext(ctx, "bash", "-e", script)
		cmd.Dir = filepath.Join(workspace, s.Dir)
		cmd.Env = append(os.Environ(), "GITHUB_WORKSPACE="+workspace, "RUNNER_TEMP="+runner, "GITHUB_STEP_SUMMARY="+summaryFile, "MAKEFLAGS=")
		if hasToken {
			cmd.Env = append(cmd.Env, "GITHUB_TOKEN=secret")
		}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if strings.Contains(stdout.String(), "::") {
			annotations = append(annotations, readAnnotations(t, stdout.String())...)
		}
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit) && exit.Exited() && strings.Contains(s.Run, "validate"):
			return exit.ExitCode(), annotations, ""
		case err != nil:
			t.Fatalf("step %q: %v\n%s%s", s.Name, err, &stdout, &stderr)
		}
	}
	return 0, annotations, ""
}

// TestGitLabOnAMergeRequest runs the script of the job for GitLab as a runner does,
// with a good and with a bad configuration.
func TestGitLabOnAMergeRequest(t *testing.T) {
	needs(t, "bash", "git")
	text, err := os.ReadFile("../examples/ci/gitlab.yaml")
	must(t, err)
	var jobs map[string]struct {
		Script    []string
		Artifacts struct {
			Paths   []string
			Reports map[string]string
		}
	}
	must(t, yaml.Unmarshal(text, &jobs))
	job := jobs["dtesn-config"]
	workspace := repository(t, "config")
	base := strings.TrimSpace(git(t, workspace, "rev-parse", "HEAD"))
	git(t, workspace, "checkout", "--quiet", "-b", "topic")
	host := newCodeHost(t, true, workspace)
	for _, c := range []struct {
		to       string
		code     int
		plan     string
		findings int
		comments int
	}{
		{"percent: 20", 0, "**production**: experiment `bigger-reservoir` goes from 10 % to 20 %, and its engines rebuild\n", 0, 1},
		{"percent: 200", 3, "**production**: not valid, nothing is applied: 1 violation\n", 1, 1},
		{"percent: 30", 0, "**production**: experiment `bigger-reservoir` goes from 10 % to 30 %, and its engines rebuild\n", 0, 0}, // without a token
	} {
		replace(t, workspace, "config/production.yaml", "percent: 10", c.to)
		git(t, workspace, "commit", "--quiet", "--all", "--message=change")
		cmd := exec.Command("bash", "-eo", "pipefail", "-c", strings.Join(job.Script, "\n"))
		cmd.Dir = workspace
		cmd.Env = append(os.Environ(), "CI_PROJECT_DIR="+workspace, "CI_MERGE_REQUEST_DIFF_BASE_SHA="+base)
		cmd.Env = append(cmd.Env, host.environment()...)
		if c.comments == 0 {
			cmd.Env = append(cmd.Env, "GITLAB_TOKEN=")
		}
		out, _ := cmd.CombinedOutput()
		plan, err := os.ReadFile(filepath.Join(workspace, job.Artifacts.Paths[0]))
		must(t, err)
		report, err := os.ReadFile(filepath.Join(workspace, job.Artifacts.Reports["codequality"]))
		must(t, err)
		var findings []map[string]any
		must(t, json.Unmarshal(report, &findings))
		if cmd.ProcessState.ExitCode() != c.code || !strings.HasPrefix(string(plan), c.plan) || len(findings) != c.findings || !strings.Contains(string(out), c.plan) {
			t.Errorf("%s: %v\n%s\n%s\n%s", c.to, cmd.ProcessState, out, plan, report)
		}
		if below, _ := host.below(); len(below) != c.comments || c.comments > 0 && !strings.Contains(below[0].Body, c.plan) {
			t.Errorf("%s: %d comments\n%s", c.to, len(below), out)
		}
		git(t, workspace, "reset", "--quiet", "--hard", base)
		host.barrier()
		host.comments = nil
		host.barrier()
	}
}

var annotation = regexp.MustCompile(`^::error file=([^,:]+)(?:,line=(\d+),col=(\d+))?,title=([^,:]*)::(.+)$`)

// readAnnotations reads workflow commands as a runner does: FILE LINE COLUMN
// "TITLE" TEXT, its lines with | between them.
func readAnnotations(t *testing.T, text string) (all []string) {
	t.Helper()
	decode := strings.NewReplacer("%0D", "\r", "%0A", "|", "%3A", ":", "%2C", ",", "%25", "%")
	for line := range strings.Lines(text) {
		m := annotation.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Errorf("not an annotation: %q", line)
			continue
		}
		all = append(all, decode.Replace(m[1]+" "+m[2]+" "+m[3]+` "`+m[4]+`" `+m[5]))
	}
	return all
}

// TestPreCommit commits with the real pre-commit, and this tree as the hook's
// repository: a good edit passes, a bad one is refused with the message.
func TestPreCommit(t *testing.T) {
	needs(t, "git", "pre-commit")
	hooks := t.TempDir()
	copyTree(t, hooks)
	initialise(t, hooks)

	dir := repository(t, "config")
	rev := strings.TrimSpace(git(t, hooks, "rev-parse", "HEAD"))
	put(t, filepath.Join(dir, ".pre-commit-config.yaml"), "repos:\n  - repo: "+hooks+"\n    rev: "+rev+"\n    hooks:\n      - id: dtesn-validate\n")
	home := t.TempDir()
	t.Setenv("PRE_COMMIT_HOME", home)
	for _, name := range []string{"GOMODCACHE", "GOCACHE"} { // what is there need not be fetched
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(name, strings.TrimSpace(string(out)))
	}
	if out, err := command(t, dir, "pre-commit", "install", "--install-hooks"); err != nil {
		t.Fatalf("pre-commit install: %v\n%s", err, out)
	}

	for _, c := range []struct {
		name, file, from, to string
		passes               bool
		want                 []string
	}{
		{"a good edit", "config/development.yaml", "esn_reservoir_size: 256", "esn_reservoir_size: 320", true, []string{"DTESN configuration.*Passed"}},
		{"a bad value", "config/development.yaml", "esn_reservoir_size: 320", "esn_reservoir_size: 32", false, []string{
			"DTESN configuration.*Failed", "exit code: 3", `config/development.yaml:10:23: esn_reservoir_size: Invalid value for esn_reservoir_size: 32 \(rule: 64-16384\); use an integer`,
		}},
		{"a template that breaks an environment", "config/templates/high-throughput.yaml", "esn_reservoir_size: 2048", "esn_reservoir_size: 128", false, []string{
			`config/production.yaml:14:23: .*\[see config/templates/high-throughput.yaml:12:23\]`, `config/staging.yaml:\d+:23: `,
		}},
		{"a template that nobody extends", "config/templates/fresh-answers.yaml", "cache_ttl_seconds: 5", "cache_ttl_seconds: 5s", false, []string{
			`config/templates/fresh-answers.yaml:\d+:22: .*Invalid value for cache_ttl_seconds: 5s`,
		}},
		{"a file of another name", "config/prodution.yaml", "", "environment: production\n", true, []string{`note: config/prodution.yaml is read by no agent.*production.yaml is there too`, "DTESN configuration.*Passed"}},
		{"what is no configuration", "README.md", "", "hello\n", true, []string{`DTESN configuration.*no files to check.*Skipped`}},
	} {
		if c.from != "" {
			replace(t, dir, c.file, c.from, c.to)
		} else {
			put(t, filepath.Join(dir, c.file), c.to)
		}
		git(t, dir, "add", "--all")
		out, err := command(t, dir, "git", "commit", "-m", c.name)
		if (err == nil) != c.passes {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
		for _, want := range c.want {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%s: %s is not in\n%s", c.name, want, out)
			}
		}
		if !c.passes {
			git(t, dir, "reset", "--quiet", "--hard")
		}
	}
}

// copyTree copies what is, or is to be, in this repository.
func copyTree(t *testing.T, to string) {
	t.Helper()
	out, err := exec.Command("git", "-C", "..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		lacking(t, "needs a git checkout: "+err.Error())
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		info, err := os.Lstat(filepath.Join("..", name))
		if err != nil || !info.Mode().IsRegular() {
			continue // removed, and not committed yet
		}
		text, err := os.ReadFile(filepath.Join("..", name))
		must(t, err)
		put(t, filepath.Join(to, name), string(text))
	}
}

// repository makes a git repository with examples/config as folder.
func repository(t *testing.T, folder string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(filepath.Join(dir, folder), os.DirFS("../examples/config")))
	initialise(t, dir)
	return dir
}

func initialise(t *testing.T, dir string) {
	t.Helper()
	for name, value := range map[string]string{
		"GIT_CONFIG_GLOBAL": os.DevNull, "GIT_CONFIG_SYSTEM": os.DevNull,
		"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
	} {
		t.Setenv(name, value)
	}
	git(t, dir, "init", "--quiet", "--initial-branch=main")
	git(t, dir, "add", "--all")
	git(t, dir, "commit", "--quiet", "--message=first")
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, "git", args...)
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

func command(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func put(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func replace(t *testing.T, dir, file, from, to string) {
	t.Helper()
	path := filepath.Join(dir, file)
	text, err := os.ReadFile(path)
	must(t, err)
	if strings.Count(string(text), from) != 1 {
		t.Fatalf("%s does not hold %q once", file, from)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o644))
}

// TestForeignNames: a directory's name that holds a command of a runner, or of a
// terminal, is nothing but a name.
func TestForeignNames(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"::error::pwned", "x\n::error::pwned", "x\x1b]0;pwned\x07"} {
		dir := filepath.Join(root, name)
		if err := os.CopyFS(dir, os.DirFS("../examples/config")); err != nil {
			t.Fatal(err)
		}
		for _, wrong := range []bool{false, true} {
			if wrong {
				text := "environment: production\nparameters:\n  esn_reservoir_size: 1\n"
				if err := os.WriteFile(filepath.Join(dir, "production.yaml"), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, format := range []string{"text", "github"} {
				cmd := exec.Command("agent", "validate", name, "--format", format)
				cmd.Dir = root
				out, _ := cmd.CombinedOutput() // the verdict is not the point
				for line := range strings.Lines(string(out)) {
					if strings.ContainsAny(line, "\x1b\x07") || strings.HasPrefix(line, "::error::pwned") && format == "github" {
						t.Errorf("%q, %s, wrong %v: %q", name, format, wrong, line)
					}
				}
				if len(out) == 0 {
					t.Errorf("%q, %s: no word", name, format)
				}
			}
		}
	}
}
