/* The engine behind one C header: runs a program (see src/splore/engine/program.py) on CPUs, in float32 and in eight bits.
 *
 * Life of an engine: splore_open reads a program file, or splore_create takes a program as data; both check everything. Then
 * splore_plan chooses kernels for a batch size by timing them on this machine, splore_run runs as often as wanted, and
 * splore_destroy ends it. docs/engine.md has a whole program in C.
 *
 * Every function that can fail returns 0 for success and something else for an error, and then has written a message,
 * cut to the buffer and ended by a zero byte, into `error`; `error` may be NULL. No function throws or ends the process, and a
 * null pointer where none may be is an error like any other.
 *
 * Growth: structs begin with their size, which the caller sets, and a later library knows by it which members there are. New
 * members come last, and what is 0 there, or not there at all, is the default. A library runs what fits its SPLORE_ABI.
 *
 * Threads: every function may be called from any thread at any time, but for splore_destroy, which must be the last call of an
 * engine. Runs of one engine go on at the same time, each with memory of its own; weights and plans are shared. All engines of
 * a process share one pool of helper threads, which sleep when there is nothing to do, leave signals to the program, and live
 * as long as the process: callers that come together get fewer helpers each. One engine plans at a time; runs go on meanwhile.
 * A child after a fork may use its engines at once, whatever the other threads of its parent were in.
 *
 * Systems: Linux and macOS, on x86-64 and AArch64, with GCC or Clang. Windows is not among them.
 */
#ifndef SPLORE_H
#define SPLORE_H

#include <stddef.h>
#include <stdint.h>

#define SPLORE_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define SPLORE_ABI 4 /* splore_abi() of a library that fits this header */

/* An array of the program. It must stay in place, unchanged, as long as the engine lives: every plan reads it. */
typedef struct splore_array {
  const void* data;
  int64_t count; /* elements */
  int64_t type;  /* one of SPLORE_FLOAT32.. */
} splore_array;

enum { SPLORE_FLOAT32, SPLORE_UINT32, SPLORE_INT8, SPLORE_UINT8 };

/* An operation is SPLORE_OP_WORDS integers; a word that the operation does not use is 0, an absent array is -1.
 * Operation i writes value i + 1; value 0 is the input and the last value the output. */
enum {
  SPLORE_KIND,         /* one of SPLORE_CONV.. */
  SPLORE_ACT,          /* one of SPLORE_NONE.. */
  SPLORE_INPUTS_BEGIN, /* its input values are inputs[BEGIN .. BEGIN + COUNT) */
  SPLORE_INPUTS_COUNT,
  SPLORE_OUTPUTS, /* n, the output channels of a convolution */
  SPLORE_KERNEL_H,
  SPLORE_KERNEL_W,
  SPLORE_STRIDE_H,
  SPLORE_STRIDE_W,
  SPLORE_PAD_TOP,
  SPLORE_PAD_LEFT,
  SPLORE_PAD_BOTTOM,
  SPLORE_PAD_RIGHT,
  SPLORE_DILATION_H,
  SPLORE_DILATION_W,
  SPLORE_GROUPS,
  SPLORE_COUNT_PAD, /* an average pool counts the padded zeros */
  SPLORE_FN,        /* one of SPLORE_FN_ADD.. */
  SPLORE_RANK,      /* r, 0 where there is no low-rank part */
  SPLORE_SIZE_H,    /* of what a resampling or a constant gives */
  SPLORE_SIZE_W,
  /* indices into the arrays, -1 for none */
  SPLORE_BIAS,    /* (n) */
  SPLORE_DENSE,   /* (n, k), k = (c / groups) kh kw */
  SPLORE_A,       /* (n, r) */
  SPLORE_B,       /* (r, k) */
  SPLORE_VALUES,  /* (z); or the numbers of another operation: see its kind */
  SPLORE_COLUMNS, /* (z), uint32, rising within a row; or the whole numbers of another operation */
  SPLORE_ROWS,    /* (n + 1), uint32 */
  SPLORE_SCALE,   /* (c): of an affine operation, a normalisation, or what comes before a convolution: relu(scale x + shift) */
  SPLORE_SHIFT,   /* (c) */
  SPLORE_QUANT,   /* (2): scale and zero point of a result that is stored in bytes; see src/splore/engine/integer.py */
  /* of weights in bytes: DENSE, A, B and VALUES (4 z, the blocks) are int8, COLUMNS are the blocks' positions, and */
  SPLORE_WEIGHT_SCALE, /* (n) */
  SPLORE_A_SCALE,      /* (n) */
  SPLORE_B_SCALE,      /* (r) */
  SPLORE_T_SCALE,      /* (1) */
  SPLORE_TABLE,        /* (256), uint8 */
  SPLORE_OP_WORDS
};

enum {
  SPLORE_CONV,
  SPLORE_MAX_POOL,
  SPLORE_AVG_POOL,
  SPLORE_ADD,
  SPLORE_MUL,
  SPLORE_ACTIVATE,
  SPLORE_AFFINE,
  SPLORE_CONCAT,
  SPLORE_FLATTEN,
  /* See src/splore/engine/tensor_ops.py for what these compute. */
  SPLORE_REORDER,    /* COLUMNS: the offset's three places, the numbers of factors of the channels, the height and the width,
                        then axis, size and stride of each factor */
  SPLORE_RESAMPLE, /* COLUMNS and VALUES: index and weight of the rows (SIZE_H, KERNEL_H), then of the columns (SIZE_W, KERNEL_W)
                    */
  SPLORE_CONSTANT, /* no inputs; VALUES: (OUTPUTS, SIZE_H, SIZE_W) */
  SPLORE_COMBINE, /* FN */
  SPLORE_LEAKY, /* SCALE: the slopes (c) */
  SPLORE_CLAMP, /* VALUES: low and high */
  SPLORE_NORM_PIXEL, /* GROUPS, SCALE, SHIFT; VALUES: eps */
  SPLORE_NORM_GROUP,
  SPLORE_SOFTMAX, /* GROUPS */
  SPLORE_MATMUL, /* GROUPS; VALUES: the scale */
  SPLORE_MATMUL_TRANSPOSED,
  /* See src/splore/engine/integer.py. */
  SPLORE_INT_CONV, /* weights in bytes, of a value in bytes */
  SPLORE_CONVERT, /* float32 to bytes where there is a QUANT, else bytes to float32 */
  SPLORE_LOOKUP /* table[byte] */
};

/* The function of a combination. */
enum { SPLORE_FN_ADD, SPLORE_FN_SUB, SPLORE_FN_MUL, SPLORE_FN_DIV, SPLORE_FN_MAX, SPLORE_FN_MIN };

enum {
  SPLORE_NONE,
  SPLORE_RELU,
  SPLORE_RELU6,
  SPLORE_SILU,
  SPLORE_SIGMOID,
  SPLORE_HARDSWISH,
  SPLORE_HARDSIGMOID,
  SPLORE_GELU, /* the exact one, with erf */
  SPLORE_GELU_TANH,
  SPLORE_TANH,
  SPLORE_EXP,
  SPLORE_SQRT,
  SPLORE_RECIPROCAL,
  SPLORE_ABS,
  SPLORE_ELU,
  SPLORE_MISH
};

typedef struct splore_program {
  int64_t size; /* sizeof(splore_program) */
  int64_t op_words; /* SPLORE_OP_WORDS */
  int64_t array_size; /* sizeof(splore_array) */
  int64_t input[3]; /* C, H, W */
  int64_t op_count;
  const int64_t* ops; /* op_count * SPLORE_OP_WORDS */
  int64_t input_count;
  const int64_t* inputs;
  int64_t array_count;
  const splore_array* arrays;
} splore_program;

typedef struct splore_engine splore_engine;

/* The ABI number of this library; compare with SPLORE_ABI before anything else. */
SPLORE_API int splore_abi(void);

/* The version of this library, "1.2.3". */
SPLORE_API const char* splore_version(void);

typedef struct splore_options {
  int64_t size; /* sizeof(splore_options) */
  const char* isa; /* "avx512vnni", "avx512", "avxvnni", "avx2", "generic", or NULL or "" for the best of this machine */
  int64_t threads; /* that work on a run: 1 to 1024 */
  int64_t deterministic; /* not 0: an image's result is the same to the bit, whatever the batch, the timing and the engine, on
                            machines of one instruction set; slower, and planned without timing */
  int64_t plan_bytes; /* of packed weights that all plans may hold together: beyond it no new kernels are packed, and other
                         batch sizes run by the plans there are; 0 for 256 MiB, or four times the program's arrays */
  int64_t image_bytes; /* that one image of a program file may take to run; 0 for 256 MiB */
  int64_t replan; /* not 0: splore_open plans anew, by timing, the sizes whose plans in the file are not for this machine */
} splore_options;

/* Checks the whole program, shapes, sizes and indices, and makes an engine. `options` may be NULL: one thread, and the
 * defaults above. The structs may go after the call; the arrays' data may not. */
SPLORE_API int splore_create(const splore_program* program, const splore_options* options, splore_engine** engine, char* error,
                             size_t error_size);

/* Reads a program file, as Engine.save writes it, from a path, or from memory, which may go after the call. It trusts nothing: a
 * file that is cut, altered or built to harm is an error. Plans in the file that were made on a machine of the same kind, by the
 * same version, with as many threads, are taken over, which takes no timing; others are left. */
SPLORE_API int splore_open(const char* path, const splore_options* options, splore_engine** engine, char* error,
                           size_t error_size);
SPLORE_API int splore_open_memory(const void* data, size_t size, const splore_options* options, splore_engine** engine,
                                  char* error, size_t error_size);

/* Forgets all plans, and keeps, for later ones, only those kernels whose description contains `kernel`, where an operation has
 * one; "" lifts it. For tests. */
SPLORE_API int splore_force(splore_engine* engine, const char* kernel, char* error, size_t error_size);

/* Chooses the kernels for a batch size of at least 1, by timing them: moments for a small network, seconds for a large one.
 * A size that is planned already is left as it is. */
SPLORE_API int splore_plan(splore_engine* engine, int64_t batch, char* error, size_t error_size);

/* The timed plans as a text, for engines of the same program on machines of the same kind; "" where there are none. Returns the
 * bytes needed, the zero byte included; writes at most `size` of them. */
SPLORE_API int64_t splore_save_plans(splore_engine* engine, char* text, int64_t size);

/* Takes over the plans of such a text, without timing. An error where they come from a machine of another kind, another version
 * or number of threads, or don't fit the program; the engine is then as before. */
SPLORE_API int splore_load_plans(splore_engine* engine, const char* text, char* error, size_t error_size);

/* in (batch, C, H, W) -> out (batch, C', H', W'). A batch size that was not planned runs at once, by what other sizes' plans have
 * chosen, or untimed where there are none. A batch of 0 does nothing. */
SPLORE_API int splore_run(splore_engine* engine, const float* in, float* out, int64_t batch, char* error, size_t error_size);

/* C, H, W of the input, and C', H', W' of the output. */
SPLORE_API void splore_input(const splore_engine* engine, int64_t shape[3]);
SPLORE_API void splore_output(const splore_engine* engine, int64_t shape[3]);

/* What follows gives 0, or "", for no engine.
 * One of the names of splore_options.isa. */
SPLORE_API const char* splore_isa(const splore_engine* engine);

/* Bytes of activations and scratch that the plans made so far use at the most during a run of one caller. */
SPLORE_API int64_t splore_workspace(const splore_engine* engine);

/* Bytes of the weights as the plans have packed them, each packing counted once. */
SPLORE_API int64_t splore_packed(const splore_engine* engine);

/* 10^9 multiply-adds a second that one thread reaches out of registers alone; takes some milliseconds. */
SPLORE_API double splore_peak(const splore_engine* engine);

/* The same of products of bytes. */
SPLORE_API double splore_int_peak(const splore_engine* engine);

/* The plan of the batch that ran last, or was planned last, as JSON. Returns the bytes needed, the zero byte included; writes at
 * most `size` of them. */
SPLORE_API int64_t splore_table(splore_engine* engine, char* text, int64_t size);

/* NULL does nothing. */
SPLORE_API void splore_destroy(splore_engine* engine);

#ifdef __cplusplus
}
#endif
#endif
