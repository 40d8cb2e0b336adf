// Checks a Ledger's export with the Go project's own checksum-database libraries:
// the signed note by x/mod/sumdb/note, the tree by x/mod/sumdb/tlog.
//
// Usage: notecheck EXPORT VERIFIER_KEY
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const lineBytesMax = 16 << 20

type header struct {
	Note string `json:"note"`
}

type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		found[i] = s[index]
	}
	return found, nil
}

func main() {
	log.SetFlags(0)
	file, err := os.Open(os.Args[1])
	check(err)
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, lineBytesMax)
	if !lines.Scan() {
		log.Fatal("the export is empty")
	}
	var first header
	check(json.Unmarshal(lines.Bytes(), &first))

	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	opened, err := note.Open([]byte(first.Note), note.VerifierList(verifier))
	check(err)
	checkpoint := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(checkpoint[1], 10, 64)
	check(err)

	var hashes stored
	var records int64
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), `{"leaf_hashes"`) {
			continue
		}
		more, err := tlog.StoredHashes(records, lines.Bytes(), hashes)
		check(err)
		hashes = append(hashes, more...)
		records++
	}
	check(lines.Err())
	root, err := tlog.TreeHash(records, hashes)
	check(err)
	if records != size || base64.StdEncoding.EncodeToString(root[:]) != checkpoint[2] {
		log.Fatalf("%d records lead to %v, not to the signed %s", records, root, checkpoint[2])
	}
	fmt.Printf("%s %d\n", checkpoint[0], records)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
