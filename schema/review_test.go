package schema

import (
	"fmt"
	"strings"
	"testing"
)

// Two experiments that are valid alone and not together are found in a review,
// whatever instance asks.
func TestReview(t *testing.T) {
	in := input("environment: production\nexperiments:\n  - {name: deep, percent: 50, parameters: {max_membrane_depth: 16}}\n  - {name: small, percent: 50, parameters: {esn_reservoir_size: 500}}\n")
	_, v := production().Review(in)
	if v == nil || v.Total != 1 || !strings.Contains(v.List[0].Message, "together, as on some instances") {
		t.Fatalf("got %+v", v)
	}
	if at := v.List[0].Position.String(); at != "production.yaml:4:65" {
		t.Errorf("at %s", at)
	}
	refused := 0
	for _, in.Instance = range strings.Fields("a b c d e f g h i j k l") {
		if _, v := production().Load(in); v != nil {
			refused++
		}
	}
	if refused == 0 || refused == 12 {
		t.Errorf("%d of 12 instances refuse it; the test is about a part of them", refused)
	}
	c, v := production().Review(input("environment: production\nexperiments:\n  - {name: all, percent: 100, parameters: {max_membrane_depth: 16}}\n"))
	if v != nil || c.Parameters.Get("max_membrane_depth") != Int(4) || c.Experiments[0].Member {
		t.Errorf("a review is of an instance in no experiment: %+v, %v", c, v)
	}
}

// A review checks the experiments together that set operands of one rule, and
// no other ones: however many experiments there are, that is soon done.
func TestReviewOfManyExperiments(t *testing.T) {
	withoutRaceDetector(t)
	var parameters, defaults, rules, list strings.Builder
	const n = 2 * maxRuleOperands
	for i := range n {
		fmt.Fprintf(&parameters, "  p%d!: int & >=0 & <=100 @dtesn(description=\"x\")\n", i)
		fmt.Fprintf(&defaults, "  p%d: 0\n", i)
		fmt.Fprintf(&list, "  - {name: e%d, percent: 1, parameters: {p%d: %d}}\n", i, i, i)
	}
	for i := 0; i < n; i += maxRuleOperands {
		var names []string
		for j := range maxRuleOperands {
			names = append(names, fmt.Sprintf("p%d", i+j))
		}
		fmt.Fprintf(&rules, "  #rules: r%d: {rule: %q, operands: [%s], holds: %s < 80, message: \"too much\", hint: \"less\"}\n",
			i, "sum < 80", `"`+strings.Join(names, `", "`)+`"`, strings.Join(names, "+"))
	}
	s := mustParse(t, "package dtesn\n#environments: production: {}\n#percent: int & >=0 & <=100\n#Parameters: {\n"+
		parameters.String()+rules.String()+"}\n#defaults: {\n"+defaults.String()+"}\n")
	in := Input{Files: []File{
		NewFile(BaseFile, []byte("parameters:\n"+strings.ReplaceAll(defaults.String(), "  p", "    p"))),
		NewFile("production.yaml", []byte("environment: production\nexperiments:\n"+list.String())),
	}}
	_, v := s.For("production").Review(in)
	if v == nil {
		t.Fatalf("got %v", v)
	}
	// 8+9+…+15 is 92: all but one of 8 to 12 are still too many, and all are.
	if v.Total != 6 || !strings.HasPrefix(v.List[0].String(), "production.yaml:18:47: p15: too much, in the experiments e8 and e9 and ") {
		t.Errorf("got %d: %s", v.Total, v.List[0])
	}
}
