"""A C program that keeps a compiler busy: many functions, each a little different.  One thread."""

HEADERS = ("stdio.h", "stdlib.h", "string.h", "math.h", "stdint.h", "errno.h", "pthread.h", "unistd.h")
FUNCTIONS = 14000


def function(number: int) -> str:
    """One function that is worth optimizing."""
    return f"""
struct item{number} {{ uint32_t key; double weight[{number % 7 + 1}]; char name[{number % 29 + 3}]; }};
double visit{number}(struct item{number} *items, size_t count) {{
    double sum = {number}.5;
    for (size_t i = 0; i < count; i++) {{
        if (items[i].key % {number % 11 + 2} == 0)
            sum += sqrt(items[i].weight[i % {number % 7 + 1}]);
        else if (strncmp(items[i].name, "item-{number}", sizeof items[i].name) > 0)
            sum -= items[i].weight[0] * {number % 13};
        else
            fprintf(stderr, "item %zu of visit {number} has key %u\\n", i, items[i].key);
    }}
    return sum;
}}"""


def main() -> None:
    """Print the program."""
    print("\n".join(f"#include <{header}>" for header in HEADERS))
    for number in range(FUNCTIONS):
        print(function(number))


if __name__ == "__main__":
    main()
