"""Write rows like those of the irises to stdout, one per line: python rows.py 1000000"""

import random
import sys


def main() -> None:
    drawn = random.Random(0)
    for _ in range(int(sys.argv[1])):
        size = drawn.random()
        centres = (4.5 + 3 * size, 3.0, 1.0 + 5 * size, 0.1 + 2.2 * size)
        row = [abs(round(drawn.gauss(centre, 0.2), 1)) for centre in centres]
        print(row)


if __name__ == "__main__":
    main()
