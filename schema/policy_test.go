package schema

import (
	"strings"
	"testing"

	"dtesn-agent/schema/problem"
)

// goodPolicy uses everything that a rule may use.
const goodPolicy = `package policy

import "list"

deny: {
	if change.environment == "production" {
		if change.old != _|_ if change.new.esn_reservoir_size > 2*change.old.esn_reservoir_size {
			growth: {parameters: ["esn_reservoir_size"], message: "at most doubles", hint: "go in two steps"}
		}
		for e in change.experiments if e.was == 0 && e.percent > 25 {
			"exp-\(e.name)": message: "begins with 25 % at most"
		}
		if list.Contains(change.changed, "max_membrane_depth") if !list.Contains(["ada"], *change.signer | "") {
			depth: message: "only ada changes the depth"
		}
	}
	for name, value in change.new if value == 1 {
		"one-\(name)": message: "is 1"
	}
}
cases: [
	{change: {environment: "production", old: esn_reservoir_size: 512, new: esn_reservoir_size: 2048}, deny: ["growth"]},
	{change: {environment: "production", old: esn_reservoir_size: 512, new: esn_reservoir_size: 1024}, deny: []},
	{change: {environment: "staging", old: esn_reservoir_size: 512, new: esn_reservoir_size: 2048}, deny: []},
	{change: {environment: "production", new: {esn_reservoir_size: 64, max_membrane_depth: 2}, signer: "bob"}, deny: ["depth"]},
	{change: {environment: "production", new: {esn_reservoir_size: 64, max_membrane_depth: 2}, signer: "ada"}, deny: []},
	{change: {environment: "production", new: esn_reservoir_size: 64, experiments: [{name: "x", percent: 50, was: 0}]}, deny: ["exp-x"]},
]
`

func policyOf(texts ...string) PolicySource {
	s := PolicySource{Dir: "p", Parameters: Default().Names()}
	for _, env := range Default().Environments() {
		s.Environments = append(s.Environments, string(env))
	}
	for i, text := range texts {
		s.Files = append(s.Files, File{Path: string(rune('a'+i)) + ".cue", Bytes: []byte(text)})
	}
	return s
}

func TestPolicy(t *testing.T) {
	p, err := OpenPolicy(policyOf(goodPolicy))
	if err != nil {
		t.Fatal(problem.Text(err))
	}
	if p.Cases != 6 || !p.UsesSigner {
		t.Errorf("%d cases, signer %v", p.Cases, p.UsesSigner)
	}
	r := Default().For("production")
	old := r.Defaults()
	denied, err := p.Judge(r.Propose(&old, old.With("esn_reservoir_size", Int(4096)), nil))
	if err != nil || len(denied) != 1 || denied[0].String() != "growth: at most doubles (esn_reservoir_size)" || denied[0].Hint != "go in two steps" {
		t.Errorf("%v, %v", denied, err)
	}
	if denied, err := p.Judge(r.Propose(&old, old, nil)); err != nil || denied != nil {
		t.Errorf("%v, %v", denied, err)
	}
}

// TestPolicyCasesAlone: what only the cases use is no fault of the rules.
func TestPolicyCasesAlone(t *testing.T) {
	p, err := OpenPolicy(policyOf("import \"strings\"\nlet x = 1\ndeny: {}\ncases: [{change: {environment: strings.ToLower(\"STAGING\"), new: max_membrane_depth: x}, deny: []}]\n"))
	if err != nil || p.Cases != 1 {
		t.Fatal(problem.Text(err))
	}
}

// TestPolicyBad holds what is said of a policy that is wrong: the place, the cause and the hint.
func TestPolicyBad(t *testing.T) {
	deny := func(rule string) string { return "deny: {" + rule + "}\n" }
	rule := func(condition string) string { return deny("if " + condition + ` {a: message: "x"}`) }
	for text, want := range map[string]string{
		"x: 1\n":                     "policy p: deny is missing; write deny: {…}",
		"deny: {\n":                  "policy p/a.cue:1:9: expected '}', found 'EOF'; correct this line",
		"deny: [\"a\"]\n":            "policy p/a.cue:1:7: deny: conflicting values",
		"deny: 1\n":                  "policy p/a.cue:1:7: deny: conflicting values",
		"deny: {}\nx: 1 & 2\n":       "policy p/a.cue:2:4: x: conflicting values",
		"deny: {}\na: {b: a}\n":      "structural cycle",
		"deny: {}\nchange: {}\n":     "policy p/a.cue:2:1: change is declared; remove it",
		deny(`a: mesage: "x"`):       "policy p/a.cue:1:11: deny.a.mesage: field not allowed",
		deny(`a: parameters: ["x"]`): `policy p/a.cue:1:24: unknown parameter x; it is one of bseries_max_order`,
		deny(`a: {parameters: ["esn_resevoir_size"], message: "x"}`):                                                    "policy p/a.cue:1:25: unknown parameter esn_resevoir_size; did you mean esn_reservoir_size?",
		rule(`change.enviroment == "production"`):                                                                       "policy p/a.cue:1:18: unknown field of change enviroment; did you mean environment?",
		rule(`change.odl != _|_`):                                                                                       "policy p/a.cue:1:18: unknown field of change odl; did you mean old?",
		rule(`(*change.sigenr | "") == "a"`):                                                                            "unknown field of change sigenr; did you mean signer?",
		rule(`change.old.esn_resevoir_size != _|_`):                                                                     "unknown parameter esn_resevoir_size; did you mean esn_reservoir_size?",
		rule(`change.new["esn_resevoir_size"] > 1`):                                                                     "unknown parameter esn_resevoir_size; did you mean esn_reservoir_size?",
		deny(`_small: message: "x"`):                                                                                    "policy p/a.cue:1:8: _small in deny denies nothing: it is hidden, a definition or optional; give it a name",
		deny(`if change.new.cache_ttl_seconds > 5 {#small: message: "x"}`):                                              "\"#small\" in deny denies nothing",
		deny(`small?: message: "x"`):                                                                                    "small in deny denies nothing",
		rule(`change.environment == ("prodution")`):                                                                     "unknown environment prodution",
		"import \"list\"\n" + rule(`list.Contains(["prodution"], change.environment)`):                                  "unknown environment prodution",
		deny(`for n in change.changed if n == "esn_resevoir_size" {a: message: "x"}`):                                   "unknown parameter esn_resevoir_size",
		deny(`for k, v in change.new if k == "esn_resevoir_size" {a: message: "x"}`):                                    "unknown parameter esn_resevoir_size",
		deny(`for e in change.experiments if (*e["precent"] | 0) > 5 {a: message: "x"}`):                                "unknown field of an experiment precent",
		deny(`for e in change.experiments let x = e if (*x.precent | 0) > 5 {a: message: "x"}`):                         "unknown field of an experiment precent",
		"cases: []\ndeny: {for c in cases {a: message: \"x\"}}\n":                                                       "a rule reads cases, which are not there when a change is judged",
		rule(`change.environment == "prodution"`):                                                                       "policy p/a.cue:1:33: unknown environment prodution; did you mean production?",
		"import \"list\"\n" + rule(`list.Contains(change.changed, "ttl_cache")`):                                        "policy p/a.cue:2:41: unknown parameter ttl_cache; it is one of",
		"let c = change\n" + rule(`c.odl != _|_`):                                                                       "policy p/a.cue:1:9: change without a name",
		"let o = change.old\n" + deny(""):                                                                               "policy p/a.cue:1:9: change.old without a name",
		deny(`let e = change.environment, if e != _|_ {a: message: "x"}`):                                               "a comparison with _|_ of what is not part of change",
		deny(`for e in change.experiments if e.pct > 25 {a: message: "x"}`):                                             "unknown field of an experiment pct",
		"import \"foo.com/x\"\ndeny: {a: message: x.y}\n":                                                               "policy p/a.cue:1:8: import of \"foo.com/x\" is not allowed; import only packages of CUE itself",
		"import \"tool/exec\"\ndeny: {a: message: exec.y}\n":                                                            "import of \"tool/exec\" is not allowed",
		"import \"strngs\"\ndeny: {a: message: strngs.y}\n":                                                             "policy p/a.cue:1:8: ",
		"deny: {}\ncases: [{change: {environment: \"production\", new: {}}, deny: [\"x\"]}]\n":                          "policy p/a.cue:2:9: case 1 is denied by nothing, and should be by x; correct the rule, or deny of the case",
		deny(`growth: message: "x"`) + "cases: [{change: {environment: \"production\", new: {}}, deny: [\"grwth\"]}]\n": "policy p/a.cue:2:9: case 1 is denied by growth, and should be by grwth; did you mean growth?",
		"deny: {}\ncases: [{change: {environment: \"produktion\", new: {}}, deny: []}]\n":                               "case 1: unknown environment produktion; did you mean production?",
		"deny: {}\ncases: [{change: {environment: \"production\", new: {siz: 1}}, deny: []}]\n":                         "policy p/a.cue:2:52: cases.0.change.new.siz: field not allowed",
		"deny: {}\ncases: [{change: {environment: \"production\", new: {}}}]\n":                                         "cases.0.deny: field is required but not present",
		"deny: {}\ncases: 1\n": "policy p/a.cue:2:8: cases: conflicting values",
		rule(`change.old.esn_reservoir_size > 1`) + "cases: [{change: {environment: \"production\", new: {}}, deny: []}]\n": "case 1 cannot be judged: policy p/a.cue:1:18: deny: cannot reference optional field: old; ask first whether it is there",
	} {
		_, err := OpenPolicy(policyOf("package policy\n" + text))
		got := strings.ReplaceAll(problem.Text(err), "\n", " ")
		want = renumber(want)
		if err == nil || !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", text, got, want)
		}
	}
	if _, err := OpenPolicy(policyOf("package a\ndeny: {}\n", "package b\n")); err == nil || problem.Text(err) != "policy p/b.cue:1:1: package b, and that of other files is a; write package a" {
		t.Error(problem.Text(err))
	}
	if p, err := OpenPolicy(policyOf("deny: {}\n", "deny: a: message: \"x\"\n")); err != nil {
		t.Error(problem.Text(err))
	} else if denied, err := p.Judge(Proposal{Environment: "production", Changed: []string{}, Experiments: []ProposedExperiment{}}); err != nil || len(denied) != 1 {
		t.Error(denied, err)
	}
}

// renumber makes a place in what follows the package clause one in the file.
func renumber(want string) string {
	return strings.NewReplacer("a.cue:1:", "a.cue:2:", "a.cue:2:", "a.cue:3:").Replace(want)
}
