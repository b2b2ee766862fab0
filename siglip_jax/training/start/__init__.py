"""Before the first step: the model that a config describes (`spec`), its temperature and bias fitted to the batch size
(`temperature`), a look at whether a loaded start works (`prepare_start`), and a teacher's vectors in the model's
dimension (`teacher_vectors`)."""
