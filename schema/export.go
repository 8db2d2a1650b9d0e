package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

type object = map[string]any

// JSONSchema describes the configuration files in JSON Schema, for editors
// (yaml-language-server, which speaks draft 7 and below) and
// GET /v1/config/schema. One schema fits all files, since an editor finds it by
// the same line everywhere: a file that says its environment is an
// environment's, any other one is base.yaml or a template, must have
// parameters, and can neither extend nor experiment. It cannot say what
// depends on a file's name, on the other files or on the spelling of YAML:
// `agent validate` does.
func JSONSchema() ([]byte, error) {
	f := schemaFacts()
	schema := object{
		"$schema":              "http://json-schema.org/draft-07/schema#",
		"title":                "DTESN configuration",
		"description":          "An environment's file, base.yaml or a template of a DTESN configuration.",
		"type":                 "object",
		"additionalProperties": false,
		"definitions":          object{"parameters": parametersSchema(f), "experiment": experimentSchema(f)},
		"properties":           fileProperties(f),
		"anyOf":                []object{{"required": []string{keyParameters}}, {"required": []string{keyEnvironment}}},
		"dependencies": object{
			keyExtends:     []string{keyEnvironment},
			keyExperiments: []string{keyEnvironment},
		},
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(schema); err != nil {
		return nil, fmt.Errorf("encoding the JSON Schema: %w", err)
	}
	return b.Bytes(), nil
}

// What is read as text may look like a number or a bool to an editor.
var (
	anyText    = []string{"string", "number", "boolean"}
	anyOfWords = []string{"string", "integer"}
)

func fileProperties(f *facts) object {
	return object{
		keyEnvironment: object{"enum": f.environments, "description": "The environment, equal to the file's name. Environment files only."},
		keyDescription: object{"type": anyText, "description": "What this configuration is for. An environment's becomes the snapshot's description. Not in base.yaml."},
		keyExtends: object{
			"type": "array", "uniqueItems": true, "maxItems": maxExtends,
			"description": "Templates to lay over base.yaml, in order: the names of files under templates/, without .yaml. Environment files only.",
			"items":       object{"type": anyOfWords, "pattern": templateName.String(), "minimum": 0},
		},
		keyParameters: object{"$ref": "#/definitions/parameters"},
		keyExperiments: object{
			"type": "array", "maxItems": maxExperiments,
			"description": "Part of the fleet, chosen by hash, gets other values. Environment files only.",
			"items":       object{"$ref": "#/definitions/experiment"},
		},
	}
}

func parametersSchema(f *facts) object {
	properties := object{}
	for i := range f.infos {
		properties[f.infos[i].Name] = jsonType(&f.infos[i])
	}
	return object{
		"type":                 "object",
		"description":          "What this file sets. Across files: " + strings.Join(f.rules, "; ") + ".",
		"additionalProperties": false,
		"properties":           properties,
	}
}

func experimentSchema(f *facts) object {
	percent := jsonType(&f.percent)
	percent["description"] = "The share of the fleet that is in the experiment."
	return object{
		"type":                 "object",
		"additionalProperties": false,
		"required":             []string{keyName, keyPercent, keyParameters},
		"properties": object{
			keyName: object{
				"type": anyText, "minLength": 1, "maxLength": maxLabel,
				// printable, no space at the ends
				"pattern":     `^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$`,
				"description": "The name, which decides together with the instance's who is in.",
			},
			keyPercent: percent,
			// draft 7 ignores what stands beside a $ref
			keyParameters: object{"allOf": []object{{"$ref": "#/definitions/parameters"}, {"minProperties": 1}}},
		},
	}
}

func jsonType(info *ParameterInfo) object {
	if info.Type == "bool" {
		return object{"type": "boolean", "default": info.Default, "description": info.about()}
	}
	o := object{"type": "integer", "minimum": *info.Minimum, "maximum": *info.Maximum}
	if info.Default != nil {
		o["default"], o["description"] = info.Default, info.about()
	}
	return o
}

// about is the description of a parameter with its impact.
func (info *ParameterInfo) about() string {
	s := fmt.Sprintf("%s. Affects %s.", info.Description, info.Impact)
	if info.Critical {
		s += " Critical: the engine rebuilds components."
	}
	return s
}

// Markdown is the table of parameters and the rules between them, for
// documentation.
func Markdown() string {
	f := schemaFacts()
	var b strings.Builder
	b.WriteString("| parameter | type | range | default | critical | description | impact |\n")
	b.WriteString("|---|---|---|---|---|---|---|\n")
	for _, info := range f.infos {
		critical := "no"
		if info.Critical {
			critical = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %v | %s | %s | %s |\n",
			info.Name, info.Type, info.Range, info.Default, critical, info.Description, info.Impact)
	}
	b.WriteString("\nRules between parameters:\n\n")
	for _, rule := range f.rules {
		fmt.Fprintf(&b, "* `%s`\n", rule)
	}
	return b.String()
}
