package schema

import (
	"encoding/json"
	"fmt"
	"strings"
)

type object = map[string]any

// JSONSchema describes the configuration files in JSON Schema, draft 2020-12,
// for editors (yaml-language-server) and GET /v1/config/schema. It fits an
// environment's file, and base.yaml and templates, which have fewer keys. It
// cannot say the rules between parameters, which may stand in different files.
func JSONSchema() ([]byte, error) {
	f := schemaFacts()
	parameters := object{
		"type":                 "object",
		"description":          "What this file sets. Across files: " + strings.Join(f.rules, "; ") + ".",
		"additionalProperties": false,
	}
	properties := object{}
	for i := range f.infos {
		properties[f.infos[i].Name] = jsonType(&f.infos[i])
	}
	parameters["properties"] = properties
	schema := object{
		"$schema":              "https://json-schema.org/draft/2020-12/schema",
		"title":                "DTESN configuration",
		"description":          "An environment's file, base.yaml or a template of a DTESN configuration.",
		"type":                 "object",
		"additionalProperties": false,
		"$defs":                object{"parameters": parameters, "experiment": experimentSchema(f)},
		"properties": object{
			keyEnvironment: object{"enum": f.environments, "description": "The environment, equal to the file's name. Environment files only."},
			keyDescription: object{"type": "string", "description": "What this configuration is for. It becomes the snapshot's description."},
			keyExtends: object{
				"type": "array", "uniqueItems": true, "maxItems": maxExtends,
				"description": "Templates to lay over base.yaml, in order: the names of files under templates/, without .yaml. Environment files only.",
				"items":       object{"type": "string", "pattern": templateName.String()},
			},
			keyParameters: object{"$ref": "#/$defs/parameters"},
			keyExperiments: object{
				"type": "array", "maxItems": maxExperiments,
				"description": "Part of the fleet, chosen by hash, gets other values. Environment files only.",
				"items":       object{"$ref": "#/$defs/experiment"},
			},
		},
	}
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the JSON Schema: %w", err)
	}
	return append(text, '\n'), nil
}

func experimentSchema(f *facts) object {
	percent := jsonType(&f.percent)
	percent["description"] = "The share of the fleet that is in the experiment."
	return object{
		"type":                 "object",
		"additionalProperties": false,
		"required":             []string{keyName, keyPercent, keyParameters},
		"properties": object{
			keyName:       object{"type": "string", "minLength": 1, "maxLength": maxLabel, "description": "The name, which decides together with the instance's who is in."},
			keyPercent:    percent,
			keyParameters: object{"$ref": "#/$defs/parameters", "minProperties": 1},
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
