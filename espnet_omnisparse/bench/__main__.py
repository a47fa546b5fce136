"""`python3 -m espnet_omnisparse.bench`: what supernet training costs."""

from espnet_omnisparse.bench.training import main

if __name__ == "__main__":
    main()
