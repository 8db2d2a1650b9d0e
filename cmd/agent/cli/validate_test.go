package cli

import (
	"encoding/json"
	"fmt"
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
		"config/developmnet.yaml":    "environment: development\n",
		"config/templates/big.yaml":  "parameters: {esn_reservoir_size: 4096}\n",
		"config/templates/idle.yaml": "parameters: {bseries_max_order: 4}\n",
		"config/templates/Big.yaml":  "parameters: {bseries_max_order: 4}\n",
		"empty/README":               "",
	})
	all := []string{
		"config: development is valid\n", "config: production is valid\n", "config: templates/idle.yaml, which no environment extends, is valid\n", "! templates/big.yaml,",
		"note: config/staging.yml is read by no agent: not checked; did you mean staging.yaml? rename it\n",
		"note: config/developmnet.yaml is read by no agent: not checked; development.yaml is there too, and is read: compare the two\n",
		"note: config/templates/Big.yaml is no template that could be extended: not checked; templates/big.yaml is there too: compare the two\n",
		"note: config/canary.yaml is read by no agent: not checked; the schema has no environment canary: name another schema with --schema\n",
		"! notes.yaml", "! staging is",
	}
	expect(t, 0, all, "validate", "config", "--allow-missing")
	expect(t, 0, all, "validate", "./config/../config/", "--allow-missing")
	expect(t, 3, []string{
		"config/staging.yml: the file is read by no agent, and there is no staging.yaml (rule: each environment has a file of its name); did you mean staging.yaml? rename it, or say --allow-missing\n",
		"config: staging is not valid: 1 violation\n", "config: production is valid\n",
	}, "validate", "config")
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
	expect(t, 0, []string{".: production is valid"}, "validate", "--allow-missing")
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
	if err := r.run(t.Context()); err != nil || !r.valid() || len(r.verdicts) != 1 {
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

// TestValidateNamesNearAFile: a hint never has a file overwritten.
func TestValidateNamesNearAFile(t *testing.T) {
	files(t, map[string]string{"config/eu-production.yaml": "environment: eu-production\n", "config/production.yaml": "environment: production\n"})
	expect(t, 0, []string{"production.yaml is there too, and is read: compare the two", "! rename"}, "validate", "config")
	if err := os.Rename("config/production.yaml", "config/prod.yaml"); err != nil {
		t.Fatal(err)
	}
	expect(t, 3, []string{"config/prod.yaml: the file is read by no agent", "config/eu-production.yaml: the file", "several files may be meant: give production.yaml what it should say", "! rename"}, "validate", "config")
	if err := os.Remove("config/eu-production.yaml"); err != nil {
		t.Fatal(err)
	}
	expect(t, 3, []string{"config/prod.yaml: the file is read by no agent, and there is no production.yaml", "did you mean production.yaml? rename it"}, "validate", "config")
	expect(t, 1, []string{"config has no environment's file", "note: config/prod.yaml"}, "validate", "config", "--allow-missing")
}

// TestValidateManyTemplates: some are checked, and more are an error, soon.
func TestValidateManyTemplates(t *testing.T) {
	texts := map[string]string{"config/production.yaml": "environment: production\nextends: [t-9999, t9999]\n"}
	for i := range 10_000 {
		texts[fmt.Sprintf("config/templates/t-%d.yaml", i)] = "parameters: {}\n"
	}
	files(t, texts)
	expect(t, 3, []string{
		"extends[1]: templates/t9999.yaml does not exist", "and 9988 more",
		"config/templates has 10000 templates; of those that no environment extends only 1000 were checked", "hint: remove the templates that are not used",
	}, "validate", "config")
}

// TestValidateAnInstance: it is in its experiments, and other combinations do not
// count.
func TestValidateAnInstance(t *testing.T) {
	files(t, map[string]string{"config/production.yaml": `environment: production
experiments:
  - {name: all, percent: 100, parameters: {bseries_max_order: 4}}
  - {name: none, percent: 0, parameters: {cache_ttl_seconds: 5}}
`})
	expect(t, 0, []string{"config: production is valid, in the experiment all\n"}, "validate", "config", "--instance", "a")
	var answer struct {
		Results []struct {
			Parameters  map[string]any
			Experiments []map[string]any
		}
	}
	for instance, want := range map[string]string{
		"":  "[map[name:all parameters:map[bseries_max_order:4] percent:100] map[name:none parameters:map[cache_ttl_seconds:5] percent:0]] 8",
		"a": "[map[member:true name:all parameters:map[bseries_max_order:4] percent:100] map[member:false name:none parameters:map[cache_ttl_seconds:5] percent:0]] 4",
	} {
		if err := json.Unmarshal([]byte(expect(t, 0, nil, "validate", "config", "--format", "json", "--instance", instance)), &answer); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(answer.Results[0].Experiments, " ", answer.Results[0].Parameters["bseries_max_order"]); got != want {
			t.Errorf("instance %q: %s\nwant %s", instance, got, want)
		}
		answer.Results = nil
	}
}
