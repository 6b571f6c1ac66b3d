package regular

// Windows opens a file without waiting, and a symbolic link only as what it leads to.
const (
	nonBlock = 0
	noFollow = 0
)

func isSocket(error) bool { return false }

func isLink(error) bool { return false }

func isAgain(error) bool { return false }
