package schema

import (
	"slices"
	"strings"
)

// maxWord bounds the words that Suggest compares, in bytes: a longer one is no
// misspelling.
const maxWord = 64

// Suggest finds the candidate that word was probably meant to be: the one at
// the least edit distance, if that is at most a third of the word's length,
// or else the only one that contains it. Case and the difference of "-" and
// "_" do not count.
func Suggest(word string, candidates []string) (string, bool) {
	if slices.Contains(candidates, word) {
		return word, true
	}
	if word == "" || len(word) > maxWord {
		return "", false
	}
	word = foldWord(word)
	best, least := "", max(1, len(word)/3)+1
	containing, count := "", 0
	for _, c := range candidates {
		folded := foldWord(c)
		if len(folded) > maxWord {
			continue
		}
		if apart := len(folded) - len(word); -least < apart && apart < least { // else the distance is too
			if d := editDistance(word, folded); d < least && d < len(folded) {
				best, least = c, d
			}
		}
		if len(word) >= 3 && strings.Contains(folded, word) {
			containing = c
			count++
		}
	}
	if best == "" && count == 1 {
		best = containing
	}
	return best, best != ""
}

func foldWord(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// editDistance counts the insertions, deletions, substitutions and swaps of
// neighbours that turn a into b (optimal string alignment), in bytes, of which
// there are at most maxWord in each.
func editDistance(a, b string) int {
	var rows [3][maxWord + 1]int
	before, previous, current := rows[0][:len(b)+1], rows[1][:len(b)+1], rows[2][:len(b)+1]
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
