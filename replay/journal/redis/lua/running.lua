-- Arguments: model.
return running(ARGV[1]) and 1 or 0