package cli

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"dtesn-agent/schema"
)

func TestValidateTakesADirectory(t *testing.T) {
	files(t, map[string]string{
		"config/development.yaml":    "environment: development\n",
		"config/production.yaml":     "environment: production\nextends: [big]\n",
		"config/canary.yaml":         "environment: canary\n",
		"config/notes.yaml":          "hello: world\n",
		"config/staging.yml":         "environment: staging\n",
		"config/templates/big.yaml":  "parameters: {esn_reservoir_size: 4096}\n",
		"config/templates/idle.yaml": "parameters: {bseries_max_order: 4}\n",
		"config/templates/Big.yaml":  "parameters: {bseries_max_order: 4}\n",
		"empty/README":               "",
	})
	all := []string{
		"config: development is valid\n", "config: production is valid\n", "config: templates/idle.yaml, which no environment extends, is valid\n", "! templates/big.yaml,",
		"note: config/staging.yml is read by no agent: not checked; did you mean staging.yaml? rename it\n",
		"note: config/templates/Big.yaml is no template that could be extended",
		"note: config/canary.yaml is read by no agent: not checked; the schema has no environment canary: name another schema with --schema\n",
		"! notes.yaml", "! staging is",
	}
	expect(t, 0, all, "validate", "config")
	expect(t, 0, all, "validate", "./config/../config/")
	expect(t, 0, []string{"config: production is valid\n", "! development", "! idle", "! note:"}, "validate", "config", "--environment", "production")
	expect(t, 3, []string{"config/testing.yaml: the file does not exist"}, "validate", "config", "--environment", "testing")

	for _, file := range []string{"config/production.yaml", "config/notes.yaml", "empty/README"} {
		expect(t, 2, []string{"agent: " + file + " is not a directory\nhint: agent validate DIR "}, "validate", file)
	}
	expect(t, 2, []string{"usage: agent validate [DIR]"}, "validate", "config", "empty")
	expect(t, 2, []string{"unknown flag: --all"}, "validate", "config", "--all")
	expect(t, 1, []string{"there is no nowhere"}, "validate", "nowhere")
	expect(t, 1, []string{"there is no production", "agent validate DIR --environment production"}, "validate", "production")
	expect(t, 1, []string{"empty has no environment's file"}, "validate", "empty")
	expect(t, 1, []string{"did you mean `agent validate config`?"}, "validate")
	expect(t, 1, []string{"did you mean `agent validate config`?"}, "validate", "config/templates")
	t.Chdir("config")
	expect(t, 0, []string{".: production is valid"}, "validate")
}

// TestValidateBehindALink: what ".." means behind a link, the kernel says.
func TestValidateBehindALink(t *testing.T) {
	files(t, map[string]string{
		"config/production.yaml":      "environment: production\n",
		"else/config/production.yaml": "environment: production\nparameters: {esn_reservoir_size: 1}\n",
		"else/deep/file":              "",
	})
	if err := os.Symlink("else/deep", "link"); err != nil {
		t.Fatal(err)
	}
	expect(t, 0, nil, "validate", "config")
	expect(t, 3, []string{"else/config/production.yaml:2:34: esn_reservoir_size", "else/config/base.yaml: the file does not exist"}, "validate", "link/../config")
}

// TestValidateReadsAFileOnce: all environments are checked on the same bytes,
// which are parsed once.
func TestValidateReadsAFileOnce(t *testing.T) {
	files(t, map[string]string{"config/production.yaml": "environment: production\n"})
	r := &review{schema: schema.Default(), root: "config", read: map[string]reading{}}
	before, err := r.file(schema.BaseFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, "config/base.yaml", "nonsense")
	after, err := r.file(schema.BaseFile)
	if err != nil || &after.Bytes[0] != &before.Bytes[0] {
		t.Errorf("read again: %s (%v)", after.Bytes, err)
	}
	if err := r.run(); err != nil || !r.valid() || len(r.verdicts) != 1 {
		t.Errorf("%+v (%v)", r.verdicts, err)
	}
}

// TestValidateATemplate: one that no environment extends is valid if some
// environment that is there takes it.
func TestValidateATemplate(t *testing.T) {
	files(t, map[string]string{
		"strict.cue": `package dtesn
#extends: "dtesn"
#Parameters: {
	budget?: int & >=1 & <=1000 @dtesn(description="B")
	if #environment == "production" {budget?: <=10}
}
`,
		"config/production.yaml":     "environment: production\n",
		"config/templates/idle.yaml": "parameters: {budget: 100}\n",
	})
	refused := "templates/idle.yaml, which no environment extends, is not valid: 1 violation"
	expect(t, 3, []string{refused, "(rule: 1-10)"}, "validate", "config", "--schema", "strict.cue")
	write(t, "config/testing.yaml", "environment: testing\n")
	expect(t, 0, nil, "validate", "config", "--schema", "strict.cue")
}

// TestValidateTellsAFault: what could not be checked is an error with its hint,
// in JSON as well.
func TestValidateTellsAFault(t *testing.T) {
	t.Chdir(t.TempDir())
	code, stdout, stderr := command(t, "validate", "nowhere", "--format", "json")
	var answer struct {
		Success bool
		Errors  []string
		Results []verdict
	}
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatal(err)
	}
	if code != 1 || answer.Success || answer.Results == nil || !slices.Equal(answer.Errors, []string{"there is no nowhere; name the directory with base.yaml"}) ||
		stderr != "agent: there is no nowhere\nhint: name the directory with base.yaml\n" {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}
