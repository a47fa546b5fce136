"""`python3 -m espnet_omnisparse.recipe`, which every recipe's `run.sh` calls."""

from espnet_omnisparse.recipe.run import main

if __name__ == "__main__":
    main()
