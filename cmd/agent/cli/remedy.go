package cli

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"dtesn-agent/schema"
)

// A remedy is a certain correction of a violation: arguments of agent set and the file they
// are for, or a text in Markdown.
type remedy struct {
	layer string
	args  []string
	text  string
}

// remedyOf returns the remedy of a violation in dir, the zero value if none is certain.
func remedyOf(dir string, v schema.Violation) (r remedy) {
	if v.Fix == nil {
		return r
	}
	was, now := pairOf(v.Fix.Old), pairOf(v.Fix.New)
	if section, _, ok := strings.Cut(v.Path, "."); !ok && v.Path != "parameters" || section != "parameters" || was == nil || now == nil || strings.HasPrefix(was[0], "-") { // a flag to agent set
		r.text = fmt.Sprintf("in line %d, %s should be %s", v.Fix.Line, code(v.Fix.Old), code(v.Fix.New))
		return r
	}
	r.layer, r.args = strings.TrimPrefix(strings.TrimPrefix(v.File, dir), "/"), []string{now[0] + "=" + now[1]}
	if was[0] != now[0] {
		r.args = append(r.args, was[0]+"-")
	}
	return r
}

// pairOf returns the key and the value of a line "key: value", nil if it is not one.
func pairOf(line string) []string {
	var root yaml.Node
	if yaml.Unmarshal([]byte(line), &root) != nil || len(root.Content) != 1 {
		return nil
	}
	pair := root.Content[0]
	if pair.Kind != yaml.MappingNode || len(pair.Content) != 2 || pair.Content[1].Kind != yaml.ScalarNode {
		return nil
	}
	return []string{pair.Content[0].Value, pair.Content[1].Value}
}
