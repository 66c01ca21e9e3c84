"""What every floor may use; knows nothing of models.

types           arrays of numbers and of places
arguments       types and names of arguments
checks          arguments: numbers, shares, choices
seals           arrays that a caller may change
double_double   arrays in twice the precision
display         results as text and HTML
numerals        numbers written as text
distributions   tails and quantiles without scipy.stats
log_tails       logarithms of tails too small for a number
archives        files of one JSON document and arrays in numpy's format
threads         pieces of work over threads
blas_threads    one BLAS thread where matrices are small
progress        the progress bar
text_tables     aligned text
formats         paragraphs and tables in HTML, Markdown, LaTeX
records         dataclasses that are made in less time
memory          memory asked for before BLAS needs it
seeds           streams of random numbers
words           the words of other packages
hints           what to say of names and values that do not exist here
"""
