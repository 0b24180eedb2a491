/* The products of matrices and vectors that NumPy asks of a BLAS library, computed plainly.
 *
 * NumPy's wheels bring OpenBLAS, 26 MB, and cannot be loaded without it. The runtime multiplies
 * no matrices in NumPy; the engine does that. So a bundle holds this in its place: the same
 * names, the same results but for the order of sums, and slow for large matrices.
 *
 * Names and integers are those of NumPy's own wheels (64-bit integers, "scipy_" before the name
 * and "64_" behind it). NumPy never asks for conjugates but in cdotc and zdotc.
 */

#include <complex.h>
#include <stdint.h>

#define EXPORTED(name) __attribute__((visibility("default"))) scipy_cblas_##name##64_

typedef int64_t integer;
typedef float complex float_complex;
typedef double complex double_complex;

enum { ROW_MAJOR = 101, TRANSPOSED = 112, CONJUGATED = 113, UPPER = 121 };

/* Where a vector with a negative step begins: at its last number. */
static integer start_of(integer length, integer step) {
    return step < 0 ? (1 - length) * step : 0;
}

#define DEFINE_SUM(type, wide)                                                                     \
    static type sum_plain_##type(integer n, const type *x, integer x_step, const type *y,          \
                                 integer y_step) {                                                 \
        wide total = 0;                                                                            \
        for (integer k = 0; k < n; ++k) {                                                          \
            total += (wide)x[k * x_step] * (wide)y[k * y_step];                                    \
        }                                                                                          \
        return (type)total;                                                                        \
    }                                                                                              \
    static type sum_##type(integer n, const type *x, integer x_step, const type *y,                \
                           integer y_step) {                                                       \
        return sum_plain_##type(n, x + start_of(n, x_step), x_step, y + start_of(n, y_step),       \
                                y_step);                                                           \
    }

/* y += alpha * x */
#define DEFINE_ADD(type)                                                                           \
    static void add_##type(integer n, type alpha, const type *x, integer x_step, type *y,          \
                           integer y_step) {                                                       \
        integer i = start_of(n, x_step), j = start_of(n, y_step);                                  \
        for (integer k = 0; k < n; ++k, i += x_step, j += y_step) {                                \
            y[j] += alpha * x[i];                                                                  \
        }                                                                                          \
    }

/* y = alpha * A x + beta * y. A number of A is at row * row_step + column * column_step. */
#define DEFINE_VECTOR(type)                                                                        \
    static void vector_##type(int order, int form, integer rows, integer columns, type alpha,      \
                              const type *a, integer a_lead, const type *x, integer x_step,        \
                              type beta, type *y, integer y_step) {                                \
        integer row_step = order == ROW_MAJOR ? a_lead : 1;                                        \
        integer column_step = order == ROW_MAJOR ? 1 : a_lead;                                     \
        if (form == TRANSPOSED || form == CONJUGATED) {                                            \
            integer count = rows, step = row_step;                                                 \
            rows = columns, columns = count;                                                       \
            row_step = column_step, column_step = step;                                            \
        }                                                                                          \
        const type *first = x + start_of(columns, x_step);                                         \
        type *to = y + start_of(rows, y_step);                                                     \
        for (integer i = 0; i < rows; ++i, to += y_step) {                                         \
            type total = sum_plain_##type(columns, a + i * row_step, column_step, first, x_step);  \
            *to = alpha * total + (beta == 0 ? 0 : beta * *to);                                    \
        }                                                                                          \
    }

/* C = alpha * A B + beta * C; column-major is the same with rows and columns exchanged. With
 * `part` of 1 or -1 only what lies on and above, or on and below the diagonal. */
#define DEFINE_MATRIX(type)                                                                        \
    static void matrix_##type(int order, int a_form, int b_form, integer rows, integer columns,    \
                              integer depth, type alpha, const type *a, integer a_lead,            \
                              const type *b, integer b_lead, type beta, type *c, integer c_lead,   \
                              int part) {                                                          \
        int by_rows = order == ROW_MAJOR;                                                          \
        int a_by_rows = by_rows == (a_form != TRANSPOSED && a_form != CONJUGATED);                 \
        int b_by_rows = by_rows == (b_form != TRANSPOSED && b_form != CONJUGATED);                 \
        for (integer i = 0; i < rows; ++i) {                                                       \
            const type *row = a + (a_by_rows ? i * a_lead : i);                                    \
            integer begin = part > 0 ? i : 0;                                                      \
            integer end = part < 0 ? i + 1 : columns;                                              \
            for (integer j = begin; j < end; ++j) {                                                \
                const type *column = b + (b_by_rows ? j : j * b_lead);                             \
                type *to = c + (by_rows ? i * c_lead + j : j * c_lead + i);                        \
                type total = sum_plain_##type(depth, row, a_by_rows ? 1 : a_lead, column,          \
                                              b_by_rows ? b_lead : 1);                             \
                *to = alpha * total + (beta == 0 ? 0 : beta * *to);                                \
            }                                                                                      \
        }                                                                                          \
    }

#define DEFINE_ALL(type, wide)                                                                     \
    DEFINE_SUM(type, wide)                                                                         \
    DEFINE_ADD(type)                                                                               \
    DEFINE_VECTOR(type)                                                                            \
    DEFINE_MATRIX(type)

DEFINE_ALL(float, double)
DEFINE_ALL(double, double)
DEFINE_ALL(float_complex, double_complex)
DEFINE_ALL(double_complex, double_complex)

/* C = alpha * A A' + beta * C, or A' A, one half of it. */
#define DEFINE_OWN_PRODUCT(type)                                                                   \
    static void own_##type(int order, int half, int form, integer size, integer depth,             \
                           type alpha, const type *a, integer a_lead, type beta, type *c,          \
                           integer c_lead) {                                                       \
        int is_turned = form == TRANSPOSED || form == CONJUGATED;                                  \
        matrix_##type(order, form, is_turned ? 111 : TRANSPOSED, size, size, depth, alpha, a,      \
                      a_lead, a, a_lead, beta, c, c_lead, half == UPPER ? 1 : -1);                 \
    }

DEFINE_OWN_PRODUCT(float)
DEFINE_OWN_PRODUCT(double)
DEFINE_OWN_PRODUCT(float_complex)
DEFINE_OWN_PRODUCT(double_complex)

/* Numbers are passed as they are, complex ones by address. */
#define BY_VALUE(type) type
#define BY_ADDRESS(type) const type *
#define VALUE(number) (number)
#define AT_ADDRESS(number) (*(number))

#define EXPORT_PRODUCTS(letter, type, passed, taken)                                               \
    void EXPORTED(letter##axpy)(integer n, passed(type) alpha, const type *x, integer x_step,      \
                                type *y, integer y_step) {                                         \
        add_##type(n, taken(alpha), x, x_step, y, y_step);                                         \
    }                                                                                              \
    void EXPORTED(letter##gemv)(int order, int form, integer rows, integer columns,                \
                                passed(type) alpha, const type *a, integer a_lead, const type *x,  \
                                integer x_step, passed(type) beta, type *y, integer y_step) {      \
        vector_##type(order, form, rows, columns, taken(alpha), a, a_lead, x, x_step,              \
                      taken(beta), y, y_step);                                                     \
    }                                                                                              \
    void EXPORTED(letter##gemm)(int order, int a_form, int b_form, integer rows, integer columns,  \
                                integer depth, passed(type) alpha, const type *a, integer a_lead,  \
                                const type *b, integer b_lead, passed(type) beta, type *c,         \
                                integer c_lead) {                                                  \
        matrix_##type(order, a_form, b_form, rows, columns, depth, taken(alpha), a, a_lead, b,     \
                      b_lead, taken(beta), c, c_lead, 0);                                          \
    }                                                                                              \
    void EXPORTED(letter##syrk)(int order, int half, int form, integer size, integer depth,        \
                                passed(type) alpha, const type *a, integer a_lead,                 \
                                passed(type) beta, type *c, integer c_lead) {                      \
        own_##type(order, half, form, size, depth, taken(alpha), a, a_lead, taken(beta), c,        \
                   c_lead);                                                                        \
    }

EXPORT_PRODUCTS(s, float, BY_VALUE, VALUE)
EXPORT_PRODUCTS(d, double, BY_VALUE, VALUE)
EXPORT_PRODUCTS(c, float_complex, BY_ADDRESS, AT_ADDRESS)
EXPORT_PRODUCTS(z, double_complex, BY_ADDRESS, AT_ADDRESS)

float EXPORTED(sdot)(integer n, const float *x, integer x_step, const float *y, integer y_step) {
    return sum_float(n, x, x_step, y, y_step);
}

double EXPORTED(ddot)(integer n, const double *x, integer x_step, const double *y,
                      integer y_step) {
    return sum_double(n, x, x_step, y, y_step);
}

#define EXPORT_COMPLEX_SUMS(letter, type, wide, conjugate)                                         \
    void EXPORTED(letter##dotu_sub)(integer n, const type *x, integer x_step, const type *y,       \
                                    integer y_step, type *result) {                                \
        *result = sum_##type(n, x, x_step, y, y_step);                                             \
    }                                                                                              \
    void EXPORTED(letter##dotc_sub)(integer n, const type *x, integer x_step, const type *y,       \
                                    integer y_step, type *result) {                                \
        wide total = 0;                                                                            \
        integer i = start_of(n, x_step), j = start_of(n, y_step);                                  \
        for (integer k = 0; k < n; ++k, i += x_step, j += y_step) {                                \
            total += conjugate((wide)x[i]) * (wide)y[j];                                           \
        }                                                                                          \
        *result = (type)total;                                                                     \
    }

EXPORT_COMPLEX_SUMS(c, float_complex, double_complex, conj)
EXPORT_COMPLEX_SUMS(z, double_complex, double_complex, conj)
