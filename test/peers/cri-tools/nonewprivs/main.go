// A program whose file is setuid root in an image, to see whether the kernel lets it become root.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
